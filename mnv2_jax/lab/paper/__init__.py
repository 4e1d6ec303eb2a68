"""Every table and figure of the paper, reproduced from this project's models, counts and runs.

- `report.write_paper`: all items as one HTML page, and as Markdown with pictures beside it;
- `tables` (1 to 7), `figure_1`, `figure_5`, `figure_6`, `figure_7`, `section_5_1`: the items;
- `printed`: what the paper prints, and the accuracies that its authors published;
- `other_networks`: MobileNetV1 and ShuffleNet as far as Table 3 needs them;
- `results`: results of experiments and evaluations, found in folders;
- `content`, `drawing`, `page`, `style`: from items to pictures, HTML and Markdown.
"""
