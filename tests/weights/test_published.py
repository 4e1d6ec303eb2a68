"""Published weights by name: the table, and downloads from a server and mirrors of this machine."""

import hashlib
import http.server
import re
import socket
import sys
import tarfile
import threading
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest

from mnv2_jax import SPECS, MobileNetV2, UsageError, from_pretrained
from mnv2_jax.lab.cli import main
from mnv2_jax.lab.model_folder import load_model
from mnv2_jax.models.spec import IMAGENET
from mnv2_jax.weights import (
    ECOSYSTEMS,
    PUBLISHED,
    Loaded,
    Published,
    export_weights,
    load_weights,
    published,
)
from mnv2_jax.weights.architecture import find_architecture
from mnv2_jax.weights.preprocessing import RELEASES, resolution_of
from mnv2_jax.weights.readers import READERS
from tests.weights.bundles import write_bundle
from tests.weights.networks import network, same, shapes_of

ROWS = {f"{eco}:{name}": row for eco, rows in PUBLISHED.items() for name, row in rows.items()}
PAGE = Path(__file__).parents[2] / "docs/how-to/weights.md"
SMALL = "small.safetensors"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache; no mirror, and no proxy between a test and its server."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("MNV2_MIRROR", raising=False)
    return tmp_path / "cache/mnv2_jax/weights"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with a small network's file in timm's names, and its variables."""
    folder = tmp_path_factory.mktemp("small")
    model, variables = network("timm")
    export_weights(model, variables, "timm", folder / SMALL)
    return folder, variables


class Server(http.server.ThreadingHTTPServer):
    """Answers with `content`, and by its first word on the path in a way that fails."""

    daemon_threads = True

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.asked, self.done = content, [], threading.Event()
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked.append(self.path)
        how, _, rest = self.path[1:].partition("/")
        if how == "moved":
            return self.send_error(404)
        if how == "redirected":
            self.send_response(302)
            self.send_header("Location", f"/{rest}")
            return self.end_headers()
        content = server.content
        if how == "damaged":
            content = content[:-1] + bytes([content[-1] ^ 1])
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if how in ("truncated", "stalled"):
            content = content[: len(content) // 2]
        self.wfile.write(content)
        if how == "stalled":
            self.wfile.flush()
            server.done.wait()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(small):
    pytest.importorskip("pooch")
    with Server((small[0] / SMALL).read_bytes()) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.done.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def publish(small, monkeypatch):
    """Adds the small network to the table, at an address."""

    def add(url, sha256=None, file=SMALL, ecosystem="timm"):
        digest = hashlib.sha256((small[0] / SMALL).read_bytes()).hexdigest()
        row = Published(url, digest if sha256 is None else sha256, None, 224, 1.0, file)
        monkeypatch.setitem(PUBLISHED[ecosystem], "small", row)
        return f"{ecosystem}:small"

    return add


def refused(name):
    """The one line that a name is refused with."""
    with pytest.raises(UsageError) as caught:
        from_pretrained(name)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    return message


def test_a_download_is_verified_kept_and_then_needs_no_network(small, server, publish, cache):
    name = publish(f"{server.address}/{SMALL}")
    loaded = from_pretrained(name)
    assert same(loaded.variables, small[1]) and loaded.dialect.name == "timm"
    assert loaded.source == f"timm:{cache / SMALL}" and server.asked == [f"/{SMALL}"]
    again = from_pretrained(name, drop_head=True)
    assert again.classes is None and len(server.asked) == 1
    assert [path.name for path in cache.iterdir()] == [SMALL]


def test_a_damaged_file_of_the_cache_is_replaced(small, server, publish, cache):
    name = publish(f"{server.address}/redirected/{SMALL}")
    cache.mkdir(parents=True)
    (cache / SMALL).write_bytes(b"damaged")
    assert same(from_pretrained(name).variables, small[1])
    assert server.asked == [f"/redirected/{SMALL}", f"/{SMALL}"]


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("damaged", r"has sha256 [0-9a-f]{64} where .* was expected: .* try again, or name a copy"),
        (
            "truncated",
            r"the connection ended before the file\. Try again, or download it elsewhere",
        ),
        ("moved", r"the server answers 404, as where a file has moved\."),
        ("stalled", r"the server sent nothing for 0\.2 seconds\."),
    ],
)
def test_a_download_that_fails_leaves_nothing(server, publish, cache, monkeypatch, how, why):
    monkeypatch.setattr(published, "TIMEOUT", 0.2 if how == "stalled" else 30.0)
    message = refused(publish(f"{server.address}/{how}/{SMALL}"))
    assert server.address in message and re.search(why, message)
    assert list(cache.iterdir()) == []


def test_what_is_no_file_of_weights_is_not_kept(server, publish, cache):
    server.content = b"<html>Please log in to this network.</html>"
    message = refused(publish(f"{server.address}/a", ""))
    assert "cannot be read" in message and list(cache.iterdir()) == []


def test_without_a_network(publish):
    pytest.importorskip("pooch")
    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        message = refused(publish(f"http://127.0.0.1:{taken.getsockname()[1]}/{SMALL}"))
    assert "there is no connection" in message and "MNV2_MIRROR" in message


def test_the_start_of_a_sha256_is_compared(small, server, publish):
    digest = hashlib.sha256(server.content).hexdigest()
    assert same(from_pretrained(publish(f"{server.address}/a", digest[:8])).variables, small[1])
    wrong = publish(f"{server.address}/a", "0" * 8, "another.safetensors")
    assert "where 00000000 was expected" in refused(wrong)


def test_a_mirror_is_a_folder_or_an_address(small, server, publish, monkeypatch, cache):
    name = publish("http://127.0.0.1:9/away")
    monkeypatch.setenv("MNV2_MIRROR", str(small[0]))
    assert same(from_pretrained(name).variables, small[1]) and server.asked == []
    (cache / SMALL).unlink()
    monkeypatch.setenv("MNV2_MIRROR", f"{server.address}/")
    assert same(from_pretrained(name).variables, small[1]) and server.asked == [f"/{SMALL}"]
    monkeypatch.setenv("MNV2_MIRROR", str(small[0] / "nowhere"))
    (cache / SMALL).unlink()
    assert re.search(r"MNV2_MIRROR has no file '.*nowhere/small.safetensors'", refused(name))


def test_packages_that_are_missing_are_named(publish, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    message = refused(publish("http://127.0.0.1:9/away"))
    assert "pip install 'mnv2_jax[weights]'" in message and "give its path" in message
    monkeypatch.setitem(sys.modules, "torch", None)
    message = refused("torchvision")  # before the download
    assert "install torch" in message and "need no torch: torchvision:v1-safetensors" in message


def test_a_cache_that_cannot_be_written(publish, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "XDG_CACHE_HOME" in refused(publish("http://127.0.0.1:9/away"))


@pytest.fixture
def archive(tmp_path):
    """The small network of slim in an archive as the authors pack it, and its variables."""
    model, variables = network("slim")
    export_weights(model, variables, "slim", tmp_path / "slim.npz")
    with np.load(tmp_path / "slim.npz") as tensors:
        write_bundle(tmp_path / "net.ckpt", dict(tensors))
    (tmp_path / "net.pb").write_bytes(b"a graph, which stays in the archive")
    with tarfile.open(tmp_path / "mobilenet_v2_1.0_128.tgz", "w:gz") as tar:
        for path in sorted(tmp_path.glob("net.*")):
            tar.add(path, f"./folder/{path.name}")
    return tmp_path / "mobilenet_v2_1.0_128.tgz", variables


@pytest.mark.slow
def test_an_archive_of_slim_is_unpacked_once(archive, publish, monkeypatch, cache):
    path, variables = archive
    name = publish("http://127.0.0.1:9/away", "", path.name, "slim")
    monkeypatch.setenv("MNV2_MIRROR", str(path.parent))
    loaded = from_pretrained(name)
    assert same(loaded.variables, variables) and loaded.preprocessing.size == 128
    names = sorted(p.relative_to(cache).as_posix() for p in cache.rglob("*") if p.is_file())
    inside = "mobilenet_v2_1.0_128/net.ckpt"
    assert names == [f"{inside}.data-00000-of-00001", f"{inside}.index"]
    path.unlink()
    assert from_pretrained(name).sha256 == loaded.sha256


@pytest.mark.parametrize("part", [0.5, 0.0])
def test_a_damaged_archive_is_told(archive, publish, monkeypatch, cache, part):
    path, _ = archive
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    monkeypatch.setenv("MNV2_MIRROR", str(path.parent))
    message = refused(publish("http://127.0.0.1:9/away", "", path.name, "slim"))
    assert "'mobilenet_v2_1.0_128.tgz' is damaged" in message
    assert [p for p in cache.rglob("*") if p.is_file()] == []


@pytest.mark.slow
def test_files_of_keras_lie_under_their_own_names(tmp_path, monkeypatch):
    pytest.importorskip("h5py")
    model, variables = network("keras")
    export_weights(model, variables, "keras", tmp_path / PUBLISHED["keras"]["0.35@96"].file)
    monkeypatch.setenv("MNV2_MIRROR", str(tmp_path))
    loaded = from_pretrained("keras:0.35@96")
    assert same(loaded.variables, variables) and loaded.preprocessing.size == 96


@pytest.mark.parametrize(
    ("path", "sha256", "count", "first"),
    [
        ("mobilenet_v2-b0353104.pth", "", 1000, "tench"),
        ("of/my/own.pth", ROWS["torchvision:v1"].sha256, 1000, "tench"),
        ("mobilenet_v2_1.0_224/mobilenet_v2_1.0_224.ckpt", "", 1001, "background"),
        ("of/my/own.pth", "b0353", 1000, None),
        ("mobilenet_v2-b0353104.pth", "", 999, None),
    ],
)
def test_classes_of_published_classifiers_have_names(path, sha256, count, first):
    offset = int(count == 1001)
    model = MobileNetV2(count, class_offset=offset)
    loaded = Loaded(model, {}, RELEASES["b0353104"][1], sha256, f"torchvision:{path}")
    named = published.with_names(loaded)
    assert named.names[:1] == ((first,) if first else ())
    assert not first or (len(named.names) == count and named.names[207 + offset])
    own = loaded._replace(names=("a",) * count)
    assert published.with_names(own) is own


def test_unknown_names_name_the_nearest_and_the_choices():
    message = refused("torchvison:v1")
    assert (
        "did you mean 'torchvision'? The choices are d-li14, hf, keras, mmpretrain, mmseg, "
        "paddleclas, slim, timm" in message
    )
    message = refused("timm:mobilenetv2_12d")
    assert "unknown weights of timm 'mobilenetv2_12d': did you mean 'mobilenetv2_120d'?" in message
    assert "0.35@128, 0.35@160" in refused("slim:1.4@96")


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_of_a_network_of_its_ecosystem(name):
    row, (ecosystem, _, variant) = ROWS[name], name.partition(":")
    assert row.url.startswith("https://") and re.fullmatch(r"[\w.-]+", row.file)
    assert re.fullmatch(r"([0-9a-f]{8}|[0-9a-f]{64})?", row.sha256)
    detects = "ssdlite" in name
    assert row.accuracy is None or (20 if detects else 30) < row.accuracy < 81
    if promised := re.search(r"-([0-9a-f]{8})\.", row.file):
        assert row.sha256.startswith(promised[1])
    if published.PACKED.search(row.file):
        assert ecosystem == "slim"
    else:
        assert Path(row.file).suffix in READERS
    segments = "deeplabv3_mnv2" in name or "Matthijs" in name
    size = 513 if segments else 300 if detects else 512 if ecosystem == "mmseg" else 224
    assert resolution_of(row.file, size) == row.size
    if match := re.search(r"(?<![\d.])([01]\.\d+)", variant):
        assert float(match[1]) == row.width
    elif match := re.search(r"_(\d)(\d\d)$", variant) or re.search(r"_x(\d)_(\d+)$", variant):
        assert float(f"{match[1]}.{match[2]}") == row.width
    if not segments:
        spec = SPECS.get(f"timm_{variant[-4:]}", IMAGENET)
        spec = spec._replace(divisor=4) if row.width == 0.1 else spec
        shapes = shapes_of(ecosystem, spec, row.width)
        found = find_architecture(ECOSYSTEMS[ecosystem], shapes)
        assert shapes_of(ecosystem, found.spec, found.width) == shapes
        assert found.spec != ECOSYSTEMS[ecosystem].spec or found.width == row.width


def test_the_table_agrees_with_itself_and_with_what_is_known_of_releases():
    assert len({row.file for row in ROWS.values()}) == len({row.url for row in ROWS.values()})
    assert len(ROWS) == len({row.file for row in ROWS.values()}) == 89
    for rows in PUBLISHED.values():
        assert next(iter(rows.values())).width == 1.0
    assert published.find("torchvision") == published.find("torchvision:v1")
    for name in ("torchvision:v1", "torchvision:v2"):
        assert RELEASES[ROWS[name].sha256[:8]][0].endswith(f"top-1 {ROWS[name].accuracy}")


def test_the_guide_lists_every_name_with_its_accuracy():
    """Of the grid it lists the widths and resolutions."""
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| `")]
    grid = {f"{eco}:{key}" for eco in ("slim", "keras") for key in published._grid("")}
    for name, row in ROWS.items():
        (line,) = [line for line in lines if f"`{name}`" in line] or [None]
        assert line is not None or name in grid
        if line is not None and row.accuracy is not None and not name.startswith("keras"):
            digits = 3 if row.accuracy * 100 % 1 else 2
            written = re.findall(r"\d+\.\d+", line.split("|")[2])
            assert f"{row.accuracy:.{digits}f}" in written or row.accuracy in map(float, written)
            assert ("start" in line or "whole" in line) == bool(row.sha256)
    assert not set(re.findall(r"`([\w-]+:[^` ]+)`", "".join(lines))) - ROWS.keys()


@pytest.mark.slow
def test_the_command_line_takes_names(tmp_path, monkeypatch, capsys):
    model, variables = network("timm", 5, IMAGENET, 0.35)
    row = PUBLISHED["timm"]["mobilenetv2_050"]
    export_weights(model, variables, "timm", tmp_path / row.file)
    monkeypatch.setenv("MNV2_MIRROR", str(tmp_path))
    assert main(["import", "timm:mobilenetv2_050", str(tmp_path / "model")]) == 0
    saved = load_model(tmp_path / "model")
    assert same(saved.variables, variables) and saved.model.dialect.name == "timm"
    assert saved.description["source"]["file"] == row.file
    capsys.readouterr()
    assert main(["doctor", "timm:mobilenetv2_050"]) == 0
    assert "timm (timm)" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["doctor", "import"])
def test_the_command_line_refuses_unknown_names_and_leaves_files_alone(
    verb, small, tmp_path, capsys
):
    folder = [str(tmp_path / "model")] * (verb == "import")
    for given, why in (
        ("torchvison", "no file 'torchvison', .* did you mean 'torchvision'?"),
        ("timm:mobilenetv2_12d", "did you mean 'mobilenetv2_120d'?"),
        ("timm:missing.safetensors", "there is no file 'missing.safetensors': give the path"),
        ("folder/torchvision", "there is no file 'folder/torchvision'"),
        (str(small[0]), "is a folder"),
    ):
        assert main([verb, given, *folder]) == 2
        error = capsys.readouterr().err
        assert re.search(why, error) and error.count("\n") == 1


class Larger(nn.Module):
    """A head of one's own on a backbone."""

    backbone: MobileNetV2

    @nn.compact
    def __call__(self, images):
        return nn.Dense(2, name="head")(self.backbone(images).mean(axis=(1, 2)))


@pytest.mark.slow
@pytest.mark.usefixtures("promotion")
def test_loaded_weights_go_into_a_larger_model(small):
    loaded = load_weights(f"timm:{small[0] / SMALL}", drop_head=True)
    model = Larger(loaded.model)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    fresh = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    put = loaded.into(fresh, "backbone", model)
    for kind in ("params", "batch_stats"):
        assert same(put[kind]["backbone"], loaded.variables[kind])
        assert not np.any(
            fresh[kind]["backbone"]["stem"]["norm"][{"params": "scale"}.get(kind, "var")]
        )
    assert same(put["params"]["head"], fresh["params"]["head"])
    deeper = {kind: {"net": tree} for kind, tree in fresh.items()}
    assert same(loaded.into(deeper, "net/backbone")["params"]["net"], put["params"])
    whole = load_weights(loaded.source)
    other, gone = Larger(MobileNetV2(None)), "backbone/classifier/bias, "
    for given, path, larger, why in (
        (whole, "backbone", None, f"2 tensors are missing, .* such as params/{gone}"),
        (loaded, "bacbone", None, "of the variables 'bacbone': did you mean 'backbone'"),
        (loaded, "head", None, "does not fit 'head', and nothing was put there: 262 tensors"),
        (loaded, "backbone", other, "another dialect .* in padding, bn_epsilon, mean, std: make"),
    ):
        with pytest.raises(UsageError, match=why):
            given.into(fresh, path, larger)
