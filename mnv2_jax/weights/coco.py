"""The classes of COCO as detectors number them: by ids from 1 to 90, of which ten name nothing."""

_LISTED = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, ,
stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe,
, backpack, umbrella, , , handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite,
baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, , wine glass, cup, fork,
knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake,
chair, couch, potted plant, bed, , dining table, , , toilet, , tv, laptop, mouse, remote, keyboard,
cell phone, microwave, oven, toaster, sink, refrigerator, , book, clock, vase, scissors, teddy bear,
hair drier, toothbrush
"""

IDS = tuple(name.strip() for name in _LISTED.split(","))
"""The names by id - 1, as tensorflow/models' mscoco_label_map.pbtxt has them; empty without one."""

NAMES = tuple(name for name in IDS if name)
"""The 80 classes in the order of their ids, as `coco` data sets number them."""
