"""Every table and figure of the paper again, from this project's own models, counts and runs.

- `report.write_paper`: all items as one HTML page, and as Markdown with pictures beside it;
- `printed`: what the paper prints, and the accuracies that its authors published;
- `manifold` (Fig. 1), `tables` (Tables 1 to 7), `tradeoff` (Fig. 5), `ablations` (Fig. 6),
  `channels` (Fig. 7), `memory` (Sec. 5.1): one module for each kind of item;
- `peers`: MobileNetV1 and ShuffleNet as far as Table 3 needs them;
- `runs`: results of experiments, found in folders;
- `drawing`, `page`: from items to pictures, HTML and Markdown.
"""
