"""The shape of the code, read from its syntax trees: who may import whom, and what is written nowhere."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("imagebind_encoder", "adapter_llm")

# Modules of adapter_llm, lowest first; a module imports from levels below its own.
LEVELS = (
    {"config", "parts", "words"},
    {"connector", "adapter", "llama", "lora", "clip"},
    {"model"},
    {"prompts", "processing", "retrieval", "checkpoint", "quantize", "fetch", "device", "manifest",
     "sources", "results", "sampling", "tensorfiles", "decoder", "shards", "assembly", "strict",
     "encoders", "settings", "strangers"},
    {"answering", "batch", "encoding", "feature_cache", "perception", "space", "explain", "writing"},
    {"pipeline"},
    {"engine"},
    {"data", "train", "train_encoder", "warm_start", "vocabulary", "sentences", "instructions", "indexing",
     "convert", "identify", "inspection", "caption", "evaluate", "page", "serve", "sounds", "senses", "corpus",
     "train_text", "train_audio", "train_imu", "recipe", "recipe_trunks", "recipe_senses", "evaluate_senses"},
    {"cli", "commands_space", "commands_caption", "commands_serve", "__main__", "demo"},
)  # fmt: skip
UNPLACED = 7  # a module that is in no level belongs with training and tools: nothing at inference imports it
SAME_LEVEL = {
    "llama": {"adapter", "lora"},  # the state that its projection makes; keys without the low-rank update
    "processing": {"prompts"},
    "sources": {"fetch", "manifest"},
    "decoder": {"sources", "shards", "assembly"},
    "strict": {"sources"},
    "shards": {"sources"},
    "assembly": {"sources", "shards", "tensorfiles", "strict"},
    "encoders": {"sources", "fetch", "manifest", "strict"},
    "checkpoint": {"sources", "fetch", "manifest", "decoder", "shards", "strict", "encoders"},
    "space": {"encoding"},
    "sampling": {"results"},
    "batch": {"writing"},
    "answering": {"batch", "writing"},
    "explain": {"encoding", "writing"},
    "perception": {"encoding", "feature_cache"},
    "convert": {"identify"},
    "inspection": {"identify"},
    "commands_space": {"cli"},
    "page": {"cli", "plots"},
    "commands_caption": {"cli"},
    "commands_serve": {"cli"},
    "__main__": {"cli", "commands_space", "commands_caption", "commands_serve"},
    "demo": {"cli"},
    # training reads from words to batches to stages
    "data": {"vocabulary", "sentences"},
    "warm_start": {"vocabulary", "sentences", "data"},
    "train_encoder": {"vocabulary", "sentences", "data"},
    "corpus": {"vocabulary", "data"},
    "sounds": {"data"},
    "senses": {"vocabulary", "sentences", "data", "sounds"},
    "train_audio": {"sounds", "train_encoder"},
    "train": {"vocabulary", "sentences", "data", "warm_start", "train_encoder"},
    "evaluate": {"vocabulary", "data"},
    "evaluate_senses": {"vocabulary", "evaluate", "sounds"},
    "recipe": {"data", "evaluate", "sentences", "train", "train_encoder", "vocabulary", "warm_start"},
    "recipe_trunks": {"corpus", "sounds", "train_audio", "train_imu", "train_text", "vocabulary"},
    "recipe_senses": {"recipe", "recipe_trunks", "senses", "sentences", "sounds", "train", "train_encoder",
                      "train_text", "vocabulary"},
}
TENSORS_ONLY = ["adapter_llm.connector", "adapter_llm.adapter", "adapter_llm.llama", "adapter_llm.model",
                "imagebind_encoder.modeling", "imagebind_encoder.stems", "imagebind_encoder.transformer",
                "imagebind_encoder.point"]  # fmt: skip
PICKLES = ("pickle", "_pickle", "dill", "cloudpickle", "joblib")
LONGEST = 270  # lines; design.md asks for about 250


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
if (ROOT / "demo.py").exists():
    FILES["demo"] = ROOT / "demo.py"
every_module = pytest.mark.parametrize("module", FILES)


def imports(module, path, tree=None):
    """Absolute names of all that is imported, inside functions too: `from .a import b` is `pkg.a` and `pkg.a.b`."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree or ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def part(name):
    """`model` for `adapter_llm.model` and anything in it, None for another package."""
    return name.split(".")[1] if name.startswith("adapter_llm.") else "demo" if name == "demo" else None


def level(name):
    return next((index for index, names in enumerate(LEVELS) if name in names), UNPLACED)


def imported_parts(module):
    return {part(name) for name in imports(module, FILES[module]) if name in FILES and part(name)} - {part(module)}


def test_there_is_something_to_read():
    assert {"adapter_llm.model", "imagebind_encoder.modeling", "adapter_llm.config"} <= set(FILES)
    assert imported_parts("adapter_llm.model") >= {"adapter", "llama"}


def test_relative_imports_are_understood():
    tree = ast.parse("from .. import a\nfrom ..b.c import d\nfrom . import e\ndef f():\n    import g.h")
    found = set(imports("p.q.r", Path("r.py"), tree))
    assert found == {"p", "p.a", "p.b.c", "p.b.c.d", "p.q", "p.q.e", "g.h"}


@pytest.mark.parametrize("module", [module for module in FILES if part(module)])
def test_imports_point_one_way(module):
    own = part(module)
    allowed = SAME_LEVEL.get(own, set())
    wrong = {name for name in imported_parts(module) - allowed if level(name) >= level(own)}
    if own not in set().union(*LEVELS):  # not known here: it may use its neighbours, nothing below may use it
        wrong = {name for name in wrong if level(name) > UNPLACED}
    assert not wrong, f"{module} imports {', '.join(sorted(wrong))}, on its own level or above"


@pytest.mark.parametrize("module", [module for module in FILES if module.startswith("imagebind_encoder")])
def test_the_encoder_stands_alone(module):
    names = {name.split(".")[0] for name in imports(module, FILES[module])}
    assert not names & {"adapter_llm", "demo", "transformers", "gradio", "accelerate"}


def test_inference_never_reaches_training():
    seen, waiting = set(), ["pipeline"] if "adapter_llm.pipeline" in FILES else ["model"]
    while waiting:
        name = waiting.pop()
        seen.add(name)
        waiting += [below for below in imported_parts(f"adapter_llm.{name}") if below not in seen]
    assert "config" in seen
    assert not {name for name in seen if level(name) >= UNPLACED}


@pytest.mark.parametrize("module", TENSORS_ONLY)
def test_models_take_tensors_only(module):
    roots = {name.split(".")[0] for name in imports(module, FILES[module])}
    assert not roots & {"os", "pathlib", "io", "PIL", "numpy", "tokenizers", "json", "safetensors"}
    assert not any("tokeniz" in name.lower() for name in imports(module, FILES[module]))


@every_module
def test_module_imports(module):
    if not module.endswith("__main__"):
        importlib.import_module(module)


@every_module
def test_names_in_all_exist(module):
    if not module.endswith("__main__"):
        loaded = importlib.import_module(module)
        missing = [name for name in getattr(loaded, "__all__", ()) if not hasattr(loaded, name)]
        assert not missing


@every_module
def test_file_is_short(module):
    lines = len(FILES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST, f"{FILES[module].name} has {lines} lines: it does more than one thing"


def forbidden(tree):
    """What the tree holds of things that are never written here."""
    for node in ast.walk(tree):
        used = set()
        if isinstance(node, ast.Import):
            used = {alias.name for alias in node.names} & {"_pickle", "dill", "cloudpickle", "joblib"}
        elif isinstance(node, ast.ImportFrom) and node.module in PICKLES:
            used = {alias.name for alias in node.names} - {"UnpicklingError"}
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in PICKLES:
            used = {node.attr} - {"UnpicklingError"}  # the error torch.load raises is no danger
        if used:
            yield node.lineno, "pickle runs whatever a file says"
        if not isinstance(node, ast.Call):
            continue
        called, options = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        if called.endswith(".cuda"):
            yield node.lineno, ".cuda() ties the code to one kind of device: use .to(device)"
        if called == "torch.load" and options.get("weights_only") != "True":
            yield node.lineno, "torch.load without weights_only=True runs whatever a file says"
        if options.get("allow_pickle") == "True":
            yield node.lineno, "allow_pickle=True runs whatever a file says"


@pytest.mark.parametrize("line, count", [
    ("x.cuda()", 1), ("x.cuda", 0), ("torch.cuda.is_available()", 0),
    ("torch.load(p)", 1), ("torch.load(p, weights_only=False)", 1), ("torch.load(p, weights_only=True)", 0),
    ("pickle.loads(b)", 1), ("from pickle import loads", 1), ("import dill", 1), ("pickle.UnpicklingError", 0),
    ("numpy.load(p, allow_pickle=True)", 1), ("numpy.load(p)", 0),
])  # fmt: skip
def test_forbidden_lines_are_found(line, count):
    assert len(list(forbidden(ast.parse(line)))) == count


@every_module
def test_nothing_forbidden_is_written(module):
    assert not list(forbidden(ast.parse(FILES[module].read_text(encoding="utf-8"))))
