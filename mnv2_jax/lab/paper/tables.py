"""Tables 1 to 7: every cost counted on this project's models, beside what the paper prints."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from mnv2_jax.accounting import Account, account
from mnv2_jax.lab.paper import other_networks as others
from mnv2_jax.lab.paper import printed, results
from mnv2_jax.lab.paper.content import TRAIN, Missing, Note, Part, Sources, Table, Text
from mnv2_jax.lab.paper.results import cell, evaluation_table, find, find_evaluations
from mnv2_jax.lab.tasks.segment import SCALES
from mnv2_jax.models.block import InvertedResidual
from mnv2_jax.models.build import build, build_deeplab, build_ssdlite
from mnv2_jax.models.spec import TABLE_2, unroll

DASH = "–"
NOT_OURS = (DASH, DASH, DASH)  # score, parameters and MAdds of other networks
CLASSES = 80  # COCO's, without background (Table 5)
DETECTION_SIZE, SEGMENTATION_SIZE = 320, 513
IMAGENET = TRAIN + "imagenet.py --config.data.root=/path/to/imagenet"
PRETRAINED = " --config.init.model=runs/imagenet/default/seed_0"
# For what `mnv2 import` made of published weights, and for models that were trained here.
EVALUATE = "python main.py evaluate --model MODEL --data {} --root /path/to/it --out runs/NAME"


@lru_cache
def classifier(width: float = 1.0, resolution: int = 224) -> Account:
    """Counts a MobileNetV2 with 1000 classes."""
    return account(build(width=width), (1, resolution, resolution, 3))


def classifier_madds(width: float, resolution: int) -> int:
    """Returns the multiply-adds of a MobileNetV2 with 1000 classes at another resolution."""
    if resolution % 32:
        return classifier(width, resolution).madds
    # Every layer but the classifier has as many times the positions as the image: traced once.
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


def table_1(_: Sources) -> Iterator[Part]:
    """Table 1: one block, and its cost by formula and by count."""
    yield Table(("input", "operator", "output"), printed.TABLE_1, "ppp")
    size, k, t, out = 14, 64, 6, 96  # the block of Table 2 that widens from 64 to 96 channels
    counted = account(InvertedResidual(out, t), (1, size, size, k))
    formula = (k * t * k, 9 * t * k, t * k * out)  # Sec. 3.3: h w d' t (d' + k² + d'')
    rows = []
    for part, product in zip(counted.grouped().layers, formula, strict=True):
        own = (part.path, f"{part.kernel_params:,}", f"{part.madds:,}")
        rows.append((*own, f"{size * size * product:,}"))
    total = size * size * k * t * (k + 9 + out)
    rows.append(("block", f"{counted.kernel_params:,}", f"{counted.madds:,}", f"{total:,}"))
    header = ("map", "weights, counted", "MAdds, counted", "MAdds by Sec. 3.3's formula")
    what = f"The block of Table 2 that takes {size}×{size}×{k} to {out} channels, t = {t}, s = 1"
    yield Table(header, rows, "-hhp", what)
    yield Note(
        "The formula h·w·d′·t(d′ + k² + d″) holds for stride 1; at stride 2 the depthwise "
        "convolution and the projection run on a quarter of the positions."
    )


def table_2(_: Sources) -> Iterator[Part]:
    """Table 2: the network as it is built, with what each row costs."""
    total = classifier()
    parts = {layer.path: layer for layer in total.grouped().layers}

    def cost(*names: str) -> tuple[str, str]:
        layers = [parts[name] for name in names]
        return f"{sum(la.params for la in layers):,}", f"{sum(la.madds for la in layers):,}"

    rows: list[tuple[object, ...]] = [("224²×3", "conv2d", DASH, 32, 1, 2, *cost("stem"))]
    size, channels, first = 112, unroll().blocks[0].in_channels, 0
    for row in TABLE_2:
        names = [f"block_{i}" for i in range(first, first + row.n)]
        rows.append((f"{size}²×{channels}", "bottleneck", *row, *cost(*names)))
        size, channels, first = size // row.s, row.c, first + row.n
    rows += [
        (f"{size}²×{channels}", "conv2d 1×1", DASH, 1280, 1, 1, *cost("last")),
        (f"{size}²×1280", "avgpool 7×7", DASH, DASH, 1, DASH, "0", "0"),
        ("1×1×1280", "conv2d 1×1", DASH, 1000, DASH, DASH, *cost("classifier")),
        ("whole network", "", "", "", first, "", f"{total.params:,}", f"{total.madds:,}"),
    ]
    header = ("input", "operator", "t", "c", "n", "s", "parameters, counted", "MAdds, counted")
    yield Table(header, rows, "pppppphh")
    yield Note(
        f"The text of Sec. 4 counts {printed.BOTTLENECKS_IN_TEXT} bottleneck layers; the rows of "
        f"Table 2 sum to {first}, which is what is built here and in the authors' code."
    )


def table_3(_: Sources) -> Iterator[Part]:
    """Table 3: the largest tensors of three networks, as printed and as their tables have them."""
    shuffle = others.shufflenet_channels(3)
    here = (others.MOBILENET_V1, others.mobilenet_v2_channels(unroll()), shuffle)
    rows: list[tuple[object, ...]] = []
    for size, numbers in printed.TABLE_3.items():
        counted = [f"{net[size]} / {others.kilobytes(net[size], size):,.1f}" for net in here]
        counted[2] += " *" * (size == 112)
        rows.append((f"{size}×{size}", *(f"{c} / {kb}" for c, kb in numbers), *counted))
    peaks = [max_kilobytes(channels, shuffle=channels is shuffle) for channels in here]
    rows.append(("max, kB", *printed.TABLE_3_MAX, *(f"{peak:,.0f}" for peak in peaks)))
    names = ("MobileNetV1", "MobileNetV2", "ShuffleNet 2x g=3")
    header = ("size", *(f"{n}, paper" for n in names), *(f"{n}, corrected" for n in names))
    what = "Most channels / kB at 16 bit (1 kB = 1000 bytes) that must exist at each size"
    yield Table(header, rows, "-ppphhh", what)
    expanded = unroll().blocks[1].expanded
    yield Text(
        "\\* The first layer and its pooling can be computed in parts (Sec. 5.1), so it is left "
        "out of the maximum, as in the paper. MobileNetV2's column has bottlenecks only, as in the "
        f"paper: a block is one operation. Were its expansions stored whole, 112×112×{expanded} "
        f"would take {others.kilobytes(expanded, 112):,.0f} kB."
    )
    yield Note(
        "MobileNetV2's printed rows 56, 28 and 14 carry the channels of the *next* stage: by Table "
        "2 there are 24, 32 and 96 channels at these sizes, not 32, 64 and 160. The maximum, at "
        "112×112×16, holds."
    )
    g3, g2 = (others.shufflenet_madds(groups) / 1e6 for groups in (3, 2))
    yield Note(
        f"7×7×1024 at 16 bit is {others.kilobytes(1024, 7):.0f} kB, where MobileNetV1's row prints "
        "199. ShuffleNet's 400, 800 and 1600 channels are those of g = 2 in its own paper "
        "([1707.01083](https://arxiv.org/abs/1707.01083), Table 1); for g = 3 they are 480, 960 "
        f"and 1920. Counted at 224×224, the latter has {g3:.0f} M multiply-adds, as Table 4 "
        f"prints, and g = 2 would have {g2:.0f} M. MobileNetV1's rows are those of "
        "[1704.04861](https://arxiv.org/abs/1704.04861), Table 1."
    )


def max_kilobytes(channels: dict[int, int], shuffle: bool = False) -> float:
    """Returns the largest tensor of a network; ShuffleNet's first layer is left out (Sec. 5.1)."""
    sizes = [size for size in channels if not (shuffle and size == 112)]
    return max(others.kilobytes(channels[size], size) for size in sizes)


def table_4(sources: Sources) -> Iterator[Part]:
    """Table 4: ImageNet, cost counted, accuracy from runs."""
    runs = results.imagenet_results(sources)
    evaluated = results.imagenet_evaluations(sources)
    own: dict[str, tuple[str, str, str]] = {}
    trained: list[Part] = []
    for network, width, option in (
        ("MobileNetV2", 1.0, ""),
        ("MobileNetV2 (1.4)", 1.4, " --config.model.width=1.4"),
    ):
        cost, run = classifier(width), runs.get((width, 224))
        score = cell(run.first if run else [], evaluated, width_and_size=(width, 224))
        params = f"{cost.params:,} ({cost.kernel_params / 1e6:.2f} M)"
        own[network] = (score, params, f"{cost.madds:,}")
        what = f"Top-1 accuracy at width {width} on ImageNet"
        trained.append(run.table() if run else Missing(what, IMAGENET + option))
    params = "params, counted (without norms and biases)"
    yield _beside(printed.TABLE_4, "M", ("top-1 %, paper", "top-1 %, here", params), own)
    yield from trained
    yield _evaluations(evaluated, "top-1 %", "imagenet2012")
    cost = classifier(1.4)
    yield Note(
        "The paper prints 6.9 M parameters for width 1.4; its architecture has "
        f"{cost.kernel_params / 1e6:.2f} M, or {cost.params / 1e6:.2f} M with batch norm and "
        "biases. CPU times are of a Pixel 1 phone and have no counterpart here."
    )


def table_5(sources: Sources) -> Iterator[Part]:
    """Table 5: SSD against SSDLite, after the backbone."""
    rows = []
    for heads, (name, params, madds) in printed.TABLE_5.items():
        own = (f"{count:,}" for count in heads_cost(heads))
        rows.append((name, f"{params} M", f"{madds} B", *own))
    header = ("", "params, paper", "MAdds, paper", "params, counted", "MAdds, counted")
    what = f"Extra maps and predictors for {CLASSES} classes at {DETECTION_SIZE}×{DETECTION_SIZE}"
    yield Table(header, rows, "-pphh", what)
    lite = heads_cost("ssdlite")[1]
    yield Note(
        f"The paper prints 0.35 B multiply-adds for SSDLite. Its architecture has {lite / 1e9:.3f} "
        f"B, almost exactly half of that; SSD's, counted in the same way, agree with the table."
    )
    yield from _trained(sources, "Accuracy of SSDLite and SSD heads", "ablate_ssdlite")


def table_6(sources: Sources) -> Iterator[Part]:
    """Table 6: detection on COCO."""
    coco = find(sources.runs, "detect_coco")
    evaluated = find_evaluations(sources.runs, "coco", "map")
    trained = coco[0].first if coco else []
    score = cell(trained, evaluated, width_and_size=(1.0, DETECTION_SIZE))
    own = (score, f"{detector().params:,}", f"{detector().madds:,}")
    names = ("mAP, paper", "mAP, here (val2017)", "params, counted")
    yield _beside(printed.TABLE_6, "B", names, {"MNet V2 + SSDLite": own})
    command = TRAIN + "detect_coco.py --config.data.root=/path/to/coco" + PRETRAINED
    yield coco[0].table() if coco else Missing("Mean AP on COCO", command)
    if evaluated:
        yield evaluation_table(evaluated, "mAP")
    yield from _trained(sources, "The detector on scenes of embedded pictures", "detect_scenes")


def table_7(sources: Sources) -> Iterator[Part]:
    """Table 7: segmentation on VOC 2012."""
    voc = results.voc_scores(sources)
    evaluated = find_evaluations(sources.runs, "voc_segmentation", "miou")

    def own(stride: int, aspp: bool, several: bool) -> tuple[str, ...]:
        # A training evaluates at one scale.
        trained, cost = [] if several else voc.get((stride, aspp), []), segmenter(stride, aspp)
        alike = [e for e in evaluated if e.several == several]
        score = cell(trained, alike, stride_and_pyramid=(stride, aspp))
        madds = multiscale_madds(stride, aspp) if several else cost.madds
        return score, f"{cost.params:,}", f"{madds:,}"

    rows = []
    for row in printed.TABLE_7:
        marks = ("✓" * row.aspp, "✓" * row.multiscale)
        given = (f"{row.miou:.2f}", f"{row.params} M", f"{row.madds:g} B")
        ours = row.network.startswith("MNet V2")
        counted = own(row.output_stride, row.aspp, row.multiscale) if ours else NOT_OURS
        rows.append((row.network, row.output_stride, *marks, *given, *counted))
    for aspp in (False, True):  # one scale at stride 8, which the paper leaves out
        given = ("V2*, one scale", 8, "✓" * aspp, "", DASH, DASH, DASH)
        rows.append((*given, *own(8, aspp, False)))
    header = ("network", "OS", "ASPP", "MF", "mIoU, paper", "params, paper", "MAdds, paper")
    header += ("mIoU, here", "params, counted", "MAdds, counted")
    size = f"{SEGMENTATION_SIZE}×{SEGMENTATION_SIZE}"
    what = f"OS: output stride; MF: several scales, each also flipped; counted at {size}"
    yield Table(header, rows, "----ppphhh", what)
    if not voc:
        command = TRAIN + "segment_voc.py --config.data.root=/path/to/VOC2012" + PRETRAINED
        yield Missing("Mean IoU on VOC 2012", command)
    views = " ".join(f"{scale:g}" for scale in SCALES) + " --flip"
    yield _evaluations(evaluated, "mIoU %", f"voc_segmentation --split val --scales {views}")
    pyramid, several = segmenter(16, True).madds, multiscale_madds(8, True)
    yield Note(
        f"With the pyramid the counts are {pyramid / 1e9:.2f} B and, for MF, {several / 1e9:.0f} "
        "B, where the paper prints 5.8 B and 387 B, though the parameters agree; why, it does not "
        "say. Without the pyramid they agree to 1 %. MF is counted with DeepLabv3's scales, 0.5 to "
        "1.75, which the paper does not list."
    )
    what = "The segmenter on scenes of embedded pictures"
    yield from _trained(sources, what, "segment_scenes", "ablate_output_stride")


def _beside(
    rows: Sequence[printed.Row], unit: str, names: tuple[str, str, str], own: dict[str, Any]
) -> Table:
    printed_score, score, params = names
    header = ("network", printed_score, "params, paper", "MAdds, paper", "CPU, paper")
    cells = []
    for row in rows:
        cost = (f"{row.params} M", f"{row.madds} {unit}", f"{row.cpu} ms" if row.cpu else DASH)
        cells.append((row.network, row.score, *cost, *own.get(row.network, NOT_OURS)))
    return Table((*header, score, params, "MAdds, counted"), cells, "-pppphhh")


def _evaluations(evaluated: Sequence[results.Evaluation], metric: str, data: str) -> Part:
    if evaluated:
        return evaluation_table(evaluated, metric)
    what = "The same of any model, such as one that `python main.py import` made of published"
    return Missing(f"{what} weights", EVALUATE.format(data))


def _trained(sources: Sources, what: str, *experiments: str) -> Iterator[Part]:
    found = [result for name in experiments for result in find(sources.runs, name)]
    tables = [r.table() for r in found if not r.folder.name.endswith(("-voc", "-coco"))]
    yield from tables or [Missing(what, f"{TRAIN}{experiments[0]}.py")]
