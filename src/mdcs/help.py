"""What `mdcs --help` and `mdcs VERB --help` print. Only files are read, so that it takes no time."""

import re
from collections.abc import Sequence
from pathlib import Path
from textwrap import indent

VERBS = {
    "train": "train, predict, evaluate; without arguments MDCS on digits-LT; -m sweeps, resume=DIR continues",
    "search": "words of train, some with several values, data.val_fraction=0.2 [trials=20] [metric=accuracy_few]: the best on validation; "
    "resume=DIR",
    "evaluate": "run=DIR [split=test] [checkpoint=last|best] [views=true] [features=true] [data.root=...] [logit_adjustment=1]: scores, "
    "distributions",
    "check": "data=... [sample=256|all] [output=sheet.png]: is the dataset complete and as published; a contact sheet of the views",
    "predict": "run=DIR input=FOLDER|ZIP|LIST output=FILE.csv|.parquet: classes, probabilities and each expert's vote for pictures",
    "compare": "runs=[A,B,...]: mean and s.d. over seeds, paired tests, a table of what differs",
    "analyse": "runs=[A,B,...] kind=diversity|variance: how the experts differ; bias and variance over re-drawn training pictures",
    "report": "run=DIR, or runs=[A,B]: report.html, one page to look at",
    "dashboard": "project=ENTITY/PROJECT [dry_run=true output=FILE.json]: a W&B page that compares the experts of all runs there",
    "export": "run=DIR format=torch|onnx|safetensors output=FILE: the model with its class names and preprocessing",
    "import": "format=mdcs file=model_best.pth data=...: a checkpoint of the published code into a run folder",
}

EXAMPLES = {
    "train": """mdcs train loss=ce model.num_experts=1
mdcs train data=cifar100 data.root=cifar-100-python.tar.gz trainer.max_epochs=100
mdcs train -m loss=ce,mdcs 'seed=range(3)'
mdcs train -m hydra/launcher=joblib hydra.launcher.n_jobs=2 loss=ce,mdcs   # two at a time, sharing one device; also submitit""",
    "search": """mdcs search 'optim.lr=tag(log,interval(0.01,0.3))' loss.alpha=0.0,0.3,0.6 data.val_fraction=0.2 trials=30
mdcs search resume=runs/searches/DATE_TIME""",
    "evaluate": """mdcs evaluate run=DIR                              # scores again, from the stored predictions
mdcs evaluate run=DIR checkpoint=last split=train  # from the checkpoint, on another split
mdcs evaluate run=DIR data.root=other_photos       # on other pictures of the same classes""",
    "check": """mdcs check data=folder data.root=photos
mdcs check data=cifar100 data.root=cifar-100-python.tar.gz sample=all output=views.png""",
    "predict": """mdcs predict run=DIR input=photos output=answers.csv
mdcs predict run=DIR input=list.txt output=answers.parquet top_k=3 device=cpu""",
    "compare": """mdcs compare 'runs=[runs/sweeps]'
mdcs compare 'runs=[runs/digits-resnet8-ce/*,runs/digits-resnet8-mdcs/*]' output=comparison""",
    "analyse": """mdcs analyse 'runs=[DIR]' output=experts.csv
mdcs train -m 'data.subset_seed=range(10)' hydra.sweep.dir=redrawn && mdcs analyse 'runs=[redrawn]' kind=variance""",
    "report": """mdcs report run=DIR figures=plots
mdcs report 'runs=[A,B]' output=both.html""",
    "dashboard": """mdcs dashboard project=me/mdcs
mdcs dashboard project=me/mdcs dry_run=true output=dashboard.json""",
    "export": """mdcs export run=DIR format=onnx output=model.onnx
mdcs export run=DIR format=safetensors checkpoint=best""",
    "import": "mdcs import format=mdcs file=model_best.pth data=cifar100 data.root=cifar-100-python.tar.gz",
}
SETTING = re.compile(r"^(\w+): +(.*?)(?: +# (.*))?$", re.MULTILINE)


def usage(conf: Path, verb: str | None = None) -> str:
    """All verbs, or what one of them does, its settings as they stand in its file in `conf`, and examples."""
    if verb is None:
        verbs = "\n".join(f"  {name:<10}{what}" for name, what in VERBS.items())
        return f"mdcs VERB key=value ...\n\n{verbs}\n\nmdcs VERB --help shows a verb's settings."
    examples = f"Examples:\n{indent(EXAMPLES[verb], '  ')}"
    if verb == "train":
        default = indent((conf / "config.yaml").read_text(encoding="utf-8"), "  ")
        every = "`mdcs train --cfg job` prints every setting; trainer.* takes any argument of Lightning's Trainer."
        return f"mdcs train: {VERBS[verb]}\n\nChoices:\n{choices(conf)}\n\nThe default run:\n{default}\n{every} {examples}"
    text = (conf / f"{verb}.yaml").read_text(encoding="utf-8")
    what = text.partition("\n")[0].removeprefix("# ")
    parts = [what, f"Settings, with their defaults:\n{settings(text)}"]
    if re.search("^defaults:", text, re.MULTILINE):
        groups = ("data", "augment") if verb != "search" else ()
        parts.append(f"And the words of `mdcs train --help`, such as data.root=photos and\n{choices(conf, groups)}")
    return "\n\n".join([*parts, examples])


def choices(conf: Path, names: Sequence[str] = ()) -> str:
    """The configuration groups, or those of `names`, and what can be chosen in each."""
    groups = sorted(folder for folder in conf.iterdir() if folder.is_dir() and (not names or folder.name in names))
    return "\n".join(f"  {group.name}={'|'.join(sorted(file.stem for file in group.glob('*.yaml')))}" for group in groups)


def settings(text: str) -> str:
    """The keys of a verb's file as words of the command line, those that must be given first, with what the file says of them."""
    found = [(name, value, about) for name, value, about in SETTING.findall(text) if name != "defaults"]
    found.sort(key=lambda setting: setting[1] != "???")
    words = [f"{name}={'...' if value == '???' else value}" for name, value, _ in found]
    width = max(map(len, words)) + 2
    told = ["needed" + (f": {about}" if about else "") if value == "???" else about for _, value, about in found]
    return "\n".join(f"  {word:<{width}}{what}".rstrip() for word, what in zip(words, told, strict=True))
