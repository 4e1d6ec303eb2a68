"""What the paper prints (arXiv 1801.04381v4), and the accuracies its authors published later."""

from typing import NamedTuple


class Row(NamedTuple):
    """A line of Table 4 or 6."""

    network: str
    score: float  # top-1 in %, or mAP on COCO test-dev
    params: float  # millions
    madds: float  # millions in Table 4, billions in Table 6
    cpu: int | None = None  # ms on one core of a Pixel 1


class Segmenter(NamedTuple):
    """A line of Table 7: mean IoU on VOC 2012 val, parameters in millions, MAdds in billions."""

    network: str
    output_stride: int
    aspp: bool
    multiscale: bool
    miou: float
    params: float
    madds: float


TABLE_1 = (
    ("h × w × k", "1×1 conv2d, ReLU6", "h × w × (tk)"),
    ("h × w × tk", "3×3 dwise s=s, ReLU6", "h/s × w/s × (tk)"),
    ("h/s × w/s × tk", "linear 1×1 conv2d", "h/s × w/s × k′"),
)

# Table 3: resolution -> (channels, kB at 16 bit) of MobileNetV1, MobileNetV2, ShuffleNet 2x g=3.
TABLE_3 = {
    112: ((64, 1600), (16, 400), (32, 800)),
    56: ((128, 800), (32, 200), (48, 300)),
    28: ((256, 400), (64, 100), (400, 600)),
    14: ((512, 200), (160, 62), (800, 310)),
    7: ((1024, 199), (320, 32), (1600, 156)),
    1: ((1024, 2), (1280, 2), (1600, 3)),
}
TABLE_3_MAX = (1600, 400, 600)  # kB

TABLE_4 = (
    Row("MobileNetV1", 70.6, 4.2, 575, 113),
    Row("ShuffleNet (1.5)", 71.5, 3.4, 292),
    Row("ShuffleNet (x2)", 73.7, 5.4, 524),
    Row("NasNet-A", 74.0, 5.3, 564, 183),
    Row("MobileNetV2", 72.0, 3.4, 300, 75),
    Row("MobileNetV2 (1.4)", 74.7, 6.9, 585, 143),
)

# Table 5: parameters in millions, MAdds in billions, for 80 classes.
TABLE_5 = {"ssd": ("SSD", 14.8, 1.25), "ssdlite": ("SSDLite", 2.1, 0.35)}

TABLE_6 = (
    Row("SSD300", 23.2, 36.1, 35.2),
    Row("SSD512", 26.8, 36.1, 99.5),
    Row("YOLOv2", 21.6, 50.7, 17.5),
    Row("MNet V1 + SSDLite", 22.2, 5.1, 1.3, 270),
    Row("MNet V2 + SSDLite", 22.1, 4.3, 0.8, 200),
)

TABLE_7 = (
    Segmenter("MNet V1", 16, True, False, 75.29, 11.15, 14.25),
    Segmenter("MNet V1", 8, True, True, 78.56, 11.15, 941.9),
    Segmenter("MNet V2*", 16, True, False, 75.70, 4.52, 5.8),
    Segmenter("MNet V2*", 8, True, True, 78.42, 4.52, 387.0),
    Segmenter("MNet V2*", 16, False, False, 75.32, 2.11, 2.75),
    Segmenter("MNet V2*", 8, False, True, 77.33, 2.11, 152.6),
    Segmenter("ResNet-101", 16, True, False, 80.49, 58.16, 81.0),
    Segmenter("ResNet-101", 8, True, True, 82.70, 58.16, 4870.6),
)

RESOLUTIONS = (224, 192, 160, 128, 96)
# Top-1 in % of the checkpoints that the authors released with TF-slim, by width and resolution;
# Fig. 5 draws its curves over the same pairs and prints no numbers.
RELEASED = {
    1.4: (75.0,),
    1.0: (71.8, 70.7, 68.8, 65.3, 60.3),
    0.75: (69.8, 68.7, 66.4, 63.2, 58.8),
    0.5: (65.4, 63.9, 61.0, 57.7, 51.2),
    0.35: (60.3, 58.2, 55.7, 50.8, 45.5),
}

BOTTLENECKS_IN_TEXT = 19  # Sec. 4; Table 2 sums to 17
