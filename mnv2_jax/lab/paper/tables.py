"""Tables 1 to 7: every cost counted on this project's models, beside what the paper prints."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from mnv2_jax.accounting import Account, account
from mnv2_jax.lab.paper import other_networks as peers
from mnv2_jax.lab.paper import printed
from mnv2_jax.lab.paper.content import HERE, PAPER, PLAIN, Missing, Note, Part, Sources, Table, Text
from mnv2_jax.lab.paper.evaluations import Evaluation, evaluation_table, find_evaluations
from mnv2_jax.lab.paper.runs import Result, find, imagenet_scores, spread, voc_scores
from mnv2_jax.models.block import InvertedResidual
from mnv2_jax.models.build import build, build_deeplab, build_ssdlite
from mnv2_jax.models.spec import TABLE_2, unroll

DASH = "–"
CLASSES = 80  # COCO's, without background (Table 5)
DETECTION_SIZE, SEGMENTATION_SIZE = 320, 513
# Multi-scale inputs as in DeepLabv3 (arXiv 1706.05587), which the paper follows; each also flipped.
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
IMAGENET = "python main.py --config experiments/imagenet.py --config.data.root=/path/to/imagenet"
# For what `mnv2 import` made of published weights, and for models that were trained here.
EVALUATE = "python main.py evaluate --model MODEL --data {} --root /path/to/it --out runs/NAME"


@lru_cache
def classifier(width: float = 1.0, resolution: int = 224) -> Account:
    """Counts a MobileNetV2 with 1000 classes."""
    return account(build(width=width), (1, resolution, resolution, 3))


def classifier_madds(width: float, resolution: int) -> int:
    """Returns the multiply-adds of a MobileNetV2 with 1000 classes at another resolution.

    Where 32 divides both sides, every layer but the classifier has exactly as many times the
    positions as the image: the network is traced once a width.
    """
    if resolution % 32:
        return classifier(width, resolution).madds
    traced = classifier(width)
    fixed = sum(layer.madds for layer in traced.layers if layer.path == "classifier")
    return fixed + (traced.madds - fixed) * resolution**2 // 224**2


@lru_cache
def detector(heads: str = "ssdlite") -> Account:
    """Counts MobileNetV2 with SSDLite or SSD heads, for 80 classes at 320×320 (Sec. 6.2)."""
    model = build_ssdlite(num_classes=CLASSES, heads=heads)
    return account(model, (1, DETECTION_SIZE, DETECTION_SIZE, 3))


@lru_cache
def segmenter(output_stride: int, aspp: bool, size: int = SEGMENTATION_SIZE) -> Account:
    """Counts Mobile DeepLabv3 with 21 classes (Sec. 6.3)."""
    model = build_deeplab(output_stride=output_stride, aspp=aspp)
    return account(model, (1, size, size, 3))


def heads_cost(heads: str) -> tuple[int, int]:
    """Returns parameters and MAdds of what comes after the backbone: Table 5's comparison."""
    layers = [la for la in detector(heads).layers if not la.path.startswith("backbone")]
    return sum(la.params for la in layers), sum(la.madds for la in layers)


def multiscale_madds(output_stride: int, aspp: bool) -> int:
    """Returns the MAdds of six scales, each seen as it is and flipped (Table 7's MF)."""
    sizes = [int((SEGMENTATION_SIZE - 1) * scale) + 1 for scale in SCALES]
    return 2 * sum(segmenter(output_stride, aspp, size).madds for size in sizes)


def table_1(sources: Sources) -> Iterator[Part]:
    """Table 1: one block, and its cost by formula and by count."""
    del sources
    yield Table(("input", "operator", "output"), printed.TABLE_1, (PAPER, PAPER, PAPER))
    size, k, t, out = 14, 64, 6, 96  # the block of Table 2 that widens from 64 to 96 channels
    counted = account(InvertedResidual(out, t), (1, size, size, k))
    formula = (k * t * k, 9 * t * k, t * k * out)  # Sec. 3.3: h w d' t (d' + k² + d'')
    rows = []
    for name, product in zip(("expand", "filter", "project"), formula, strict=True):
        layers = [la for la in counted.layers if la.path.split("/")[0] == name]
        madds = sum(la.madds for la in layers)
        kernels = sum(la.kernel_params for la in layers)
        rows.append((name, f"{kernels:,}", f"{madds:,}", f"{size * size * product:,}"))
    total = size * size * k * t * (k + 9 + out)
    rows.append(("block", f"{counted.kernel_params:,}", f"{counted.madds:,}", f"{total:,}"))
    yield Table(
        ("map", "weights, counted", "MAdds, counted", "MAdds by Sec. 3.3's formula"),
        tuple(rows),
        (PLAIN, HERE, HERE, PAPER),
        f"The block of Table 2 that takes {size}×{size}×{k} to {out} channels, t = {t}, s = 1",
    )
    yield Note(
        "The formula h·w·d′·t(d′ + k² + d″) holds for stride 1; at stride 2 the depthwise "
        "convolution and the projection run on a quarter of the positions."
    )


def table_2(sources: Sources) -> Iterator[Part]:
    """Table 2: the network as it is built, with what each row costs."""
    del sources
    parts = {layer.path: layer for layer in classifier().grouped().layers}
    blocks = unroll().blocks

    def cost(names: list[str]) -> tuple[str, str]:
        found = [parts[name] for name in names]
        return f"{sum(p.params for p in found):,}", f"{sum(p.madds for p in found):,}"

    rows: list[tuple[object, ...]] = []
    size, channels = 224, 3
    rows.append((f"{size}²×{channels}", "conv2d", DASH, 32, 1, 2, *cost(["stem"])))
    size, channels, first = 112, blocks[0].in_channels, 0
    for row in TABLE_2:
        names = [f"block_{i}" for i in range(first, first + row.n)]
        rows.append((f"{size}²×{channels}", "bottleneck", *row, *cost(names)))
        size, channels, first = size // row.s, row.c, first + row.n
    rows.append((f"{size}²×{channels}", "conv2d 1×1", DASH, 1280, 1, 1, *cost(["last"])))
    rows.append((f"{size}²×1280", "avgpool 7×7", DASH, DASH, 1, DASH, "0", "0"))
    rows.append(("1×1×1280", "conv2d 1×1", DASH, 1000, DASH, DASH, *cost(["classifier"])))
    total = classifier()
    rows.append(("whole network", "", "", "", first, "", f"{total.params:,}", f"{total.madds:,}"))
    yield Table(
        ("input", "operator", "t", "c", "n", "s", "parameters, counted", "MAdds, counted"),
        tuple(rows),
        (PAPER,) * 6 + (HERE, HERE),
    )
    yield Note(
        f"The text of Sec. 4 counts {printed.BOTTLENECKS_IN_TEXT} bottleneck layers; the rows of "
        f"Table 2 sum to {first}, which is what is built here and in the authors' code."
    )


def table_3(sources: Sources) -> Iterator[Part]:
    """Table 3: the largest tensors of three networks, as printed and as their tables have them."""
    del sources
    here = (
        peers.mobilenet_v1_channels(),
        peers.mobilenet_v2_channels(unroll()),
        peers.shufflenet_channels(peers.SHUFFLENET_G3),
    )
    rows = []
    for size, numbers in printed.TABLE_3.items():
        counted = [_tensor(channels[size], size) for channels in here]
        if size == 112:
            counted[2] += " *"
        rows.append((f"{size}×{size}", *(f"{c} / {kb}" for c, kb in numbers), *counted))
    peaks = [max_kilobytes(channels, shuffle=i == 2) for i, channels in enumerate(here)]
    rows.append(
        ("max, kB", *printed.TABLE_3_MAX, *(f"{peak:,.0f}" for peak in peaks)),
    )
    names = ("MobileNetV1", "MobileNetV2", "ShuffleNet 2x g=3")
    yield Table(
        ("size", *(f"{n}, paper" for n in names), *(f"{n}, corrected" for n in names)),
        tuple(rows),
        (PLAIN, PAPER, PAPER, PAPER, HERE, HERE, HERE),
        "Most channels / kB at 16 bit (1 kB = 1000 bytes) that must exist at each size",
    )
    naive = peers.kilobytes(blocks_expanded(), 112)
    yield Text(
        "\\* The first layer and its pooling can be computed in parts (Sec. 5.1), so it is left "
        "out of the maximum, as in the paper. MobileNetV2's column has bottlenecks only, as in the "
        f"paper: a block is one operation. Were its expansions stored whole, 112×112×"
        f"{blocks_expanded()} would take {naive:,.0f} kB."
    )
    g3, g2 = (peers.shufflenet_madds(n) / 1e6 for n in (peers.SHUFFLENET_G3, peers.SHUFFLENET_G2))
    v1 = peers.kilobytes(1024, 7)
    yield Note(
        "MobileNetV2's printed rows 56, 28 and 14 carry the channels of the *next* stage: by Table "
        "2 there are 24, 32 and 96 channels at these sizes, not 32, 64 and 160. The maximum, at "
        "112×112×16, holds."
    )
    yield Note(
        f"7×7×1024 at 16 bit is {v1:.0f} kB, where MobileNetV1's row prints 199. ShuffleNet's 400, "
        f"800 and 1600 channels are those of g = 2 in its own paper ([1707.01083]"
        f"(https://arxiv.org/abs/1707.01083), Table 1); for g = 3 they are 480, 960 and 1920. "
        f"Counted at 224×224, the latter has {g3:.0f} M multiply-adds, as Table 4 prints, and g = "
        f"2 would have {g2:.0f} M. MobileNetV1's rows are those of [1704.04861]"
        "(https://arxiv.org/abs/1704.04861), Table 1."
    )


def table_4(sources: Sources) -> Iterator[Part]:
    """Table 4: ImageNet, cost counted, accuracy from runs."""
    runs = imagenet_scores(sources)
    evaluated = find_evaluations(sources.runs, "imagenet2012", "accuracy")
    rows = []
    for row in printed.TABLE_4:
        width = {"MobileNetV2": 1.0, "MobileNetV2 (1.4)": 1.4}.get(row.network)
        counted: tuple[str, ...] = (DASH, DASH, DASH)
        if width is not None:
            cost = classifier(width)
            counted = (
                _here(
                    _only(runs.get((width, 224))),
                    [e for e in evaluated if e.at == (width, 224)],
                ),
                f"{cost.params:,} ({cost.kernel_params / 1e6:.2f} M)",
                f"{cost.madds:,}",
            )
        cpu = f"{row.cpu} ms" if row.cpu else DASH
        given = (f"{row.top1}", f"{row.params} M", f"{row.madds} M", cpu)
        rows.append((row.network, *given, *counted))
    yield Table(
        (
            "network", "top-1 %, paper", "params, paper", "MAdds, paper", "CPU, paper",
            "top-1 %, here", "params, counted (without norms and biases)", "MAdds, counted",
        ),
        tuple(rows),
        (PLAIN, PAPER, PAPER, PAPER, PAPER, HERE, HERE, HERE),
    )  # fmt: skip
    for width, suffix in ((1.0, ""), (1.4, " --config.model.width=1.4")):
        if (width, 224) in runs:
            yield result_table(runs[width, 224])
        else:
            yield Missing(f"top-1 accuracy at width {width} on ImageNet", IMAGENET + suffix)
    yield from _evaluations(evaluated, "top-1 %", "imagenet2012")
    cost = classifier(1.4)
    yield Note(
        f"The paper prints 6.9 M parameters for width 1.4; its architecture has "
        f"{cost.kernel_params / 1e6:.2f} M, or {cost.params / 1e6:.2f} M with batch norm and "
        "biases. CPU times are of a Pixel 1 phone and have no counterpart here."
    )


def table_5(sources: Sources) -> Iterator[Part]:
    """Table 5: SSD against SSDLite, after the backbone."""
    rows = []
    for heads, (name, params, madds) in printed.TABLE_5.items():
        own = heads_cost(heads)
        rows.append((name, f"{params} M", f"{madds} B", f"{own[0]:,}", f"{own[1]:,}"))
    yield Table(
        ("", "params, paper", "MAdds, paper", "params, counted", "MAdds, counted"),
        tuple(rows),
        (PLAIN, PAPER, PAPER, HERE, HERE),
        f"Extra maps and predictors for {CLASSES} classes at {DETECTION_SIZE}×{DETECTION_SIZE}",
    )
    lite = heads_cost("ssdlite")[1]
    yield Note(
        f"The paper prints 0.35 B multiply-adds for SSDLite. Its architecture has {lite / 1e9:.3f} "
        f"B, almost exactly half of that; SSD's, counted in the same way, agree with the table."
    )
    yield from _scores(
        sources,
        ("ablate_ssdlite",),
        "accuracy of SSDLite and SSD heads",
        "python main.py --config experiments/ablate_ssdlite.py",
    )


def table_6(sources: Sources) -> Iterator[Part]:
    """Table 6: detection on COCO."""
    cost = detector()
    coco = find(sources.runs, "detect_coco")
    evaluated = find_evaluations(sources.runs, "coco", "map")
    rows = []
    for row in printed.TABLE_6:
        counted: tuple[str, ...] = (DASH, DASH, DASH)
        if row.network.startswith("MNet V2"):
            counted = (
                _here(
                    _only(coco[0] if coco else None),
                    [e for e in evaluated if e.at == (1.0, DETECTION_SIZE)],
                ),
                f"{cost.params:,}",
                f"{cost.madds:,}",
            )
        cpu = f"{row.cpu} ms" if row.cpu else DASH
        given = (f"{row.map}", f"{row.params} M", f"{row.madds} B", cpu)
        rows.append((row.network, *given, *counted))
    yield Table(
        (
            "network", "mAP, paper", "params, paper", "MAdds, paper", "CPU, paper",
            "mAP, here (val2017)", "params, counted", "MAdds, counted",
        ),
        tuple(rows),
        (PLAIN, PAPER, PAPER, PAPER, PAPER, HERE, HERE, HERE),
    )  # fmt: skip
    if coco:
        yield result_table(coco[0])
    else:
        yield Missing(
            "mean AP on COCO",
            "python main.py --config experiments/detect_coco.py --config.data.root=/path/to/coco "
            "--config.init.model=runs/imagenet/default/seed_0",
        )
    if evaluated:
        yield evaluation_table(evaluated, "mAP")
    yield from _scores(
        sources,
        ("detect_scenes",),
        "the detector on scenes of embedded pictures",
        "python main.py --config experiments/detect_scenes.py",
    )


def table_7(sources: Sources) -> Iterator[Part]:
    """Table 7: segmentation on VOC 2012."""
    voc = voc_scores(sources)
    evaluated = find_evaluations(sources.runs, "voc_segmentation", "miou")

    def here(stride: int, aspp: bool, several: bool) -> str:
        # A training evaluates at one scale.
        trained = [] if several else voc.get((stride, aspp), [])
        return _here(trained, [e for e in evaluated if e.segmenter == (stride, aspp, several)])

    rows = []
    for row in printed.TABLE_7:
        counted: tuple[str, ...] = (DASH, DASH, DASH)
        if row.network.startswith("MNet V2"):
            cost = segmenter(row.output_stride, row.aspp)
            madds = cost.madds
            if row.multiscale:
                madds = multiscale_madds(row.output_stride, row.aspp)
            scores = here(row.output_stride, row.aspp, row.multiscale)
            counted = (scores, f"{cost.params:,}", f"{madds:,}")
        marks = ("✓" if mark else "" for mark in (row.aspp, row.multiscale))
        given = (f"{row.miou:.2f}", f"{row.params} M", f"{row.madds:g} B")
        rows.append((row.network, row.output_stride, *marks, *given, *counted))
    for aspp in (False, True):  # one scale at stride 8, which the paper leaves out
        cost = segmenter(8, aspp)
        counted = (here(8, aspp, False), f"{cost.params:,}", f"{cost.madds:,}")
        rows.append(("V2*, one scale", 8, "✓" if aspp else "", "", DASH, DASH, DASH, *counted))
    yield Table(
        (
            "network", "OS", "ASPP", "MF", "mIoU, paper", "params, paper", "MAdds, paper",
            "mIoU, here", "params, counted", "MAdds, counted",
        ),
        tuple(rows),
        (*(PLAIN,) * 4, PAPER, PAPER, PAPER, HERE, HERE, HERE),
        f"OS: output stride; MF: several scales, each also flipped; counted at "
        f"{SEGMENTATION_SIZE}×{SEGMENTATION_SIZE}",
    )  # fmt: skip
    if not voc:
        yield Missing(
            "mean IoU on VOC 2012",
            "python main.py --config experiments/segment_voc.py "
            "--config.data.root=/path/to/VOC2012 --config.init.model=runs/imagenet/default/seed_0",
        )
    yield from _evaluations(
        evaluated, "mIoU %", "voc_segmentation --split val --scales 0.5 0.75 1 1.25 1.5 1.75 --flip"
    )
    pyramid, several = segmenter(16, True).madds, multiscale_madds(8, True)
    yield Note(
        f"With the pyramid the counts are {pyramid / 1e9:.2f} B and, for MF, {several / 1e9:.0f} "
        "B, where the paper prints 5.8 B and 387 B, though the parameters agree; why, it does not "
        "say. Without the pyramid they agree to 1 %. MF is counted with DeepLabv3's scales, 0.5 to "
        "1.75, which the paper does not list."
    )
    yield from _scores(
        sources,
        ("segment_scenes", "ablate_output_stride"),
        "the segmenter on scenes of embedded pictures",
        "python main.py --config experiments/segment_scenes.py",
    )


def max_kilobytes(channels: dict[int, int], shuffle: bool = False) -> float:
    """Returns the largest tensor of a network; ShuffleNet's first layer is left out (Sec. 5.1)."""
    return max(
        peers.kilobytes(c, size) for size, c in channels.items() if not (shuffle and size == 112)
    )


def blocks_expanded() -> int:
    """Returns the most channels between expansion and projection at 112×112."""
    return unroll().blocks[1].expanded


def _here(trained: list[float], evaluated: list[Evaluation]) -> str:
    """What was trained here, and after it what was evaluated, with whose weights these are."""
    cells = ([spread(trained)] if trained else []) + [e.percent for e in evaluated]
    return ", ".join(cells) or "not run"


def _evaluations(evaluated: list[Evaluation], metric: str, data: str) -> Iterator[Part]:
    """Shows the models that were evaluated, or how published ones are."""
    if evaluated:
        yield evaluation_table(evaluated, metric)
    else:
        yield Missing(
            "the same of any model, such as one that `python main.py import` made of published "
            "weights",
            EVALUATE.format(data),
        )


def _only(result: Result | None) -> list[float]:
    return next(iter(result.scores.values())) if result else []


def _tensor(channels: int, size: int) -> str:
    kb = peers.kilobytes(channels, size)
    return f"{channels} / {kb:,.1f}"


def _scores(
    sources: Sources, experiments: tuple[str, ...], what: str, command: str
) -> Iterator[Part]:
    """Shows the results of experiments as they are, or the command that gives them."""
    results = [r for name in experiments for r in find(sources.runs, name)]
    results = [r for r in results if not r.name.endswith(("-voc", "-coco"))]
    for result in results:
        yield result_table(result)
    if not results:
        yield Missing(what, command)


def result_table(result: Result) -> Table:
    """Returns the scores of a result, whatever it measured."""
    rows: list[tuple[Any, ...]] = [
        (name.replace("_", " "), len(values), spread(values))
        for name, values in result.scores.items()
    ]
    caption = f"{result.setting or result.name} (`{result.command}`)"
    return Table(("variant", "seeds", "%, here"), tuple(rows), (PLAIN, HERE, HERE), caption)
