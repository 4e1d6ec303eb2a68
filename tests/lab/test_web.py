"""The page that runs a classifier in a browser: its files, its resizing, and its answers.

The resizing is compared with Pillow's where there is node. The whole page runs where there is also
a Chromium, `chromium` or the path in MNV2_CHROMIUM, and MNV2_ORT_WEB names the folder `dist` of the
npm package onnxruntime-web.
"""

import http.server
import io
import json
import os
import shutil
import subprocess
import tarfile
import threading
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from mnv2_jax import UsageError, build
from mnv2_jax.lab import web
from mnv2_jax.lab.cli import main
from mnv2_jax.lab.data import eval_transform
from mnv2_jax.lab.model_folder import load_model, save_model
from mnv2_jax.lab.predict import predict
from mnv2_jax.lab.tasks import SEGMENT

NODE = shutil.which("node")
CHROMIUM = os.environ.get("MNV2_CHROMIUM") or shutil.which("chromium")
DIST = os.environ.get("MNV2_ORT_WEB")
NAMES = ("</script><script>alert(1)</script>", '"quoted" & <b>', "naïve 猫", "d", "e", "f", "g")
OPTIONS = {"spec": "tiny_8", "num_classes": 8, "class_offset": 1}
RULE = {"crop": "center", "fraction": 0.875, "method": "bicubic"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, randomize):
    place = tmp_path_factory.mktemp("web") / "model"
    variables = jax.tree.map(np.array, randomize(build(**OPTIONS), (1, 24, 24, 3)))
    variables["params"]["classifier"]["kernel"] *= 8  # to be sure of something
    described = {"model": OPTIONS, "classes": NAMES, "resolution": 24, "eval": RULE}
    save_model(place, variables, described)
    return place


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder)


@pytest.fixture
def dist(tmp_path):
    (tmp_path / "dist").mkdir()
    for name in web.RUNTIME:
        (tmp_path / "dist" / name).write_bytes(name.encode())
    return str(tmp_path / "dist")


@pytest.mark.slow
def test_the_files_of_a_page(model, dist):
    files = web.page_files(model, 32, dist)
    facts = json.loads(files["model.json"])
    assert facts["rule"] == {**RULE, "antialias": True, "size": 32, "channels": 3}
    assert facts["classes"] == list(NAMES) and facts["background"] == 1
    page = files["index.html"]
    assert "http://" not in page and "https://" not in page  # nothing from elsewhere
    assert "innerHTML" not in page and "default-src 'self'" in page and NAMES[0] not in page
    assert all(files[name] == name.encode() for name in web.RUNTIME)
    assert '"./classify.mjs"' in page and f'"./{web.RUNTIME[0]}"' in files["classify.mjs"]


def test_a_page_that_cannot_be_made(model, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="this is a segmenter; --to web needs a classifier"):
        web.page_files(model._replace(task=SEGMENT), 24)
    with pytest.raises(UsageError, match=r"has no ort\.wasm.*: give the folder .*npm pack onnx"):
        web.page_files(model, 24, str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"there is no npm to fetch it: run `npm pack .*tar xzf"):
        web.page_files(model, 24)


@pytest.mark.skipif(os.name != "posix", reason="a script stands in for npm")
def test_npm_fetches_the_runtime_or_says_why_not(model, tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "packed", "w:gz") as archive:
        for name in web.RUNTIME:
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    npm = tmp_path / "npm"
    monkeypatch.setattr(shutil, "which", lambda _: str(npm))

    def fetch(script):
        npm.write_text(f"#!/bin/sh\n{script}\n")
        npm.chmod(0o755)
        return web.page_files(model, 24)

    files = fetch(f'test "$1 $2" = "pack {web.PACKAGE}" && cp {tmp_path}/packed it.tgz')
    assert all(files[name] == name.encode() for name in web.RUNTIME)
    for script, why in (("echo no network >&2; exit 1", "no network"), ("echo > it.tgz", "")):
        with pytest.raises(UsageError, match=rf"npm could not fetch .*\({why}.*--runtime"):
            fetch(script)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "onnx", "--runtime", "x", "page"], "--runtime is of a page: give --to web too."),
        (["--to", "web", "--size", "8x9", "page"], "takes square images, and --size is 8x9"),
        (["--to", "wbe", "page"], "'wbe'"),
    ],
)
def test_commands_that_make_no_page(folder, capsys, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "--model", str(folder), *words]) == 2
    assert message in capsys.readouterr().err and not Path("page").exists()


PICTURES = ((5, 7), (24, 24), (31, 90), (121, 64))  # heights and widths
RULES = [
    {"size": 24, "crop": crop, "fraction": fraction, "method": method, "antialias": antialias}
    for crop, fraction in (("center", 0.875), ("stretch", 0.7), ("none", 1.0))
    for method in ("bilinear", "bicubic", "nearest")
    for antialias in (True, False)
]
SCRIPT = """
import { prepare, softmax } from "CLASSIFY";
import { readFileSync } from "node:fs";
const { cases, logits } = JSON.parse(readFileSync(0, "utf-8"));
const results = cases.map(({ height, width, rgb, rule }) => {
  const read = (left, top, w, h) => Uint8Array.from({ length: 4 * w * h }, (_, i) => {
    const p = (i - (i % 4)) / 4;
    const x = left + (p % w), y = top + Math.floor(p / w);
    return i % 4 < 3 ? rgb[3 * (y * width + x) + (i % 4)] : 255;
  });
  return Array.from(prepare(read, width, height, rule));
});
console.log(JSON.stringify({ results, shares: softmax(logits, 1) }));
"""


@pytest.mark.slow
@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_pictures_are_cut_and_resized_as_in_evaluation(tmp_path):
    """To the byte as Pillow makes a square smaller.

    Within one of 255 without antialiasing, where OpenCV rounds in its own way, and of what is not
    square, whose height some releases of Pillow change first.
    """
    rng, cases, wanted = np.random.default_rng(0), [], []
    for (height, width), channels in zip(PICTURES, (3, 1, 3, 1), strict=True):
        image = rng.choice([0, 255, 60, 200], (height, width, 3)).astype(np.uint8)
        gray = np.asarray(Image.fromarray(image).convert("L"))[..., None]
        for rule in RULES:
            given = {"image": image if channels == 3 else gray}
            wanted.append(eval_transform(channels=channels, **rule)(given, None)["image"])
            facts = {"height": height, "width": width, "rgb": image.ravel().tolist()}
            cases.append({**facts, "rule": {**rule, "channels": channels}})
    logits = [5.0, 1.0, -2.0, 0.5]
    script = SCRIPT.replace("CLASSIFY", (Path(web.__file__).parent / "classify.mjs").as_uri())
    words = [str(NODE), "--input-type=module", "--eval", script]
    given = json.dumps({"cases": cases, "logits": logits})
    found = json.loads(subprocess.run(words, input=given, check=True, stdout=-1, text=True).stdout)
    for case, theirs, ours in zip(cases, found["results"], wanted, strict=True):
        apart = np.abs(np.array(theirs) - ours.ravel().astype(int)).max()
        exact = case["rule"]["antialias"] and case["rule"]["crop"] == "center"
        assert apart <= (0 if exact else 1), case["rule"]
    np.testing.assert_allclose(found["shares"], jax.nn.softmax(np.array(logits[1:])), atol=1e-6)


PROBE = """<!DOCTYPE html><iframe src="index.html"></iframe><script type="module">
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const { contentWindow: page } = document.querySelector("iframe");
try {
  while (!page.document.querySelector("#choose:enabled")) await wait(50);
  const answers = [];
  for (const name of ["0.png", "1.png", "2.png", "text.png"]) {
    const bytes = await (await fetch(name)).arrayBuffer();
    const files = new DataTransfer();
    files.items.add(new File([bytes], name, { type: "image/png" }));
    const input = page.document.getElementById("file");
    page.document.getElementById("answers").replaceChildren();
    page.document.getElementById("state").textContent = "?";
    input.files = files.files;
    input.dispatchEvent(new Event("change"));
    const state = page.document.getElementById("state");
    while (state.textContent === "?") await wait(20);
    const items = [...page.document.querySelectorAll("#answers li")];
    const pairs = items.map((i) => [i.childNodes[1].data, i.lastChild.style.width]);
    answers.push([state.textContent, pairs]);
  }
  await fetch("answers", { method: "POST", body: JSON.stringify(answers) });
} catch (error) { await fetch("answers", { method: "POST", body: JSON.stringify(String(error)) }); }
</script>"""


@pytest.mark.nightly
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed, nor MNV2_CHROMIUM set")
@pytest.mark.skipif(DIST is None, reason="MNV2_ORT_WEB names no folder of onnxruntime-web")
def test_the_page_answers_as_predict_does(folder, model, tmp_path):
    pytest.importorskip("onnx")
    place, rng = tmp_path / "page", np.random.default_rng(1)
    words = ["export", "--model", str(folder), "--to", "web", "--runtime", str(DIST), str(place)]
    assert main(words) == 0
    (place / "probe.html").write_text(PROBE)
    (place / "text.png").write_text("no picture")
    images = [rng.integers(0, 256, (*shape, 3)).astype(np.uint8) for shape in PICTURES[1:]]
    for i, image in enumerate(images):
        Image.fromarray(image).save(place / f"{i}.png")
    received, answers = threading.Event(), []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_POST(self):
            answers.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()
            received.set()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, directory=place)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--single-process"]
        browser += ["--no-zygote", f"--user-data-dir={tmp_path / 'profile'}"]
        browser += ["--remote-debugging-port=0"]  # keeps it open
        address = f"http://127.0.0.1:{server.server_port}/probe.html"
        with subprocess.Popen([*browser, address], stdout=-3, stderr=-3) as process:
            came = received.wait(60)
            process.kill()
        server.shutdown()
    assert came and isinstance(answers[0], list), answers
    *shown, (state, items) = answers[0]
    assert "This picture cannot be read" in state and not items
    for (state, items), prediction in zip(shown, predict(model, images), strict=True):
        wanted = prediction.values["classes"]
        assert state == "" and [name for name, _ in items] == [c["name"] for c in wanted]
        shares = [float(width.removesuffix("%")) / 100 for _, width in items]
        np.testing.assert_allclose(shares, [c["probability"] for c in wanted], atol=1e-4)
