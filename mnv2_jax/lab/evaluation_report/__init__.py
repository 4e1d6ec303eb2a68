"""An evaluation as one HTML page, which needs no other file, network or script."""

import html
from pathlib import Path
from types import ModuleType

from mnv2_jax.files import write_file
from mnv2_jax.lab.data import Source
from mnv2_jax.lab.evaluation_report import classify, detect, segment
from mnv2_jax.lab.evaluation_report.parts import OWN_STYLE, Rows, left_out, training
from mnv2_jax.lab.paper.page import PAGE, STYLE
from mnv2_jax.lab.predict import Evaluation, evaluator
from mnv2_jax.lab.tasks.task import ONCE, TestTimeAugmentation, TrainedModel

# Of each task `watcher`, which keeps of every batch what its page needs, and `sections`, which
# returns what the page says first and {title: body}.
TASKS: dict[str, ModuleType] = {"classify": classify, "detect": detect, "segment": segment}


def write_report(
    path: Path, model: TrainedModel, source: Source, facts: dict[str, str],
    folder: Path | None = None, choices: Rows = (), views: TestTimeAugmentation = ONCE,
) -> Evaluation:  # fmt: skip
    """Evaluates a model as `predict.evaluator` does, and writes the page of it.

    Args:
      path: of the page.
      model: a classifier, detector or segmenter.
      source: what it is evaluated on.
      facts: what the page says of both, such as the data's name and split, and the command.
      folder: of the model; where its training has left a log, it is shown.
      choices: rows of (what, value, reason) of the training.
      views: of a segmenter, the looks at each image that are averaged.

    Raises:
      UsageError: the model does not fit the data.
    """
    task, kept = TASKS[model.task.name], []
    found = evaluator(model, augmentation=views, watch=task.watcher(model, kept))(source)
    said, sections = task.sections(model, source, found, kept)
    sections |= {"Left out": left_out(source)}
    sections |= {"Training": training(folder, choices, model.task.monitor)}
    sections = {title: body for title, body in sections.items() if body}
    links = "".join(f'<li><a href="#s{i}">{t}</a></li>' for i, t in enumerate(sections))
    body = "\n".join(
        f'<section id="s{i}">\n<h2>{title}</h2>\n{body}\n</section>'
        for i, (title, body) in enumerate(sections.items())
    )
    scored = ", ".join(f"{name} {value:.4g}" for name, value in found.scores.items())
    intro = [said, *(f"{what}: {value}" for what, value in facts.items())]
    page = PAGE.substitute(
        title=f"Evaluation of a {model.task.noun}", style=STYLE + OWN_STYLE, links=links, body=body,
        introduction="".join(f"<p>{html.escape(line)}</p>" for line in intro),
        facts=html.escape(f"{scored}. {model.resolution}×{model.resolution} pixels."),
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, page)
    return found
