import json
import subprocess
import sys

import pytest
import torch

from fovea import cli
from fovea.device import problem
from fovea.methods.grpo import GRPO
from fovea.recipe import Recipe


def test_importing_the_package_and_the_command_line_loads_nothing_heavy():
    heavy = ("torch", "transformers", "PIL", "numpy")
    program = f"import sys, fovea, fovea.cli, fovea.types; fovea.cli.main(['--help']); print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"
    assert "fovea train" in out


def test_unknown_command_names_the_known_ones(capsys):
    assert cli.main(["trian"]) == 2
    assert "train, eval, generate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lerning-rate", "1"], "unknown field 'lerning_rate'; did you mean 'learning_rate'?"),
        (["--method.eps-low", "1"], "method: unknown field 'eps_low'; did you mean"),
        (["--steps", "many"], "--steps 'many': expected a whole number"),
        (["--steps"], "option --steps has no value"),
        (["--schedule", "step"], "--schedule 'step': expected one of constant, linear, cosine"),
        (["--gradient-checkpointing", "maybe"], "expected true or false"),
        (["--betas", "0.9"], "expected 2 values separated by commas"),
        (["--group-size", "0"], "group_size = 0, expected at least 1"),
        (["--method", "grop"], "grpo"),
        (["--lora", "16"], "--lora '16': expected its fields one by one: --lora.rank, "),
        (["--reward", "no.py:reward"], "no such file: no.py"),
        (["--reward", "nosuch"], "no verifier is called 'nosuch'; known: exact, choice"),
        (["--reward", "mine.py"], "'mine.py' is not FILE.py:NAME"),
        (["--environment", "zoo"], "environment = 'zoo'; expected FILE.py:NAME or one of cards, "),
        (["--environment", "no.py:Env"], "no such file: no.py"),
        (["--data.x", "1"], "'data' has no fields of its own"),
        (["--sampling.temperature", "-1"], "temperature = -1.0; expected 0 (greedy) or more"),
    ],
)
def test_wrong_options_are_explained(options, message, capsys):
    assert cli.main(["train", "--dry-run", *options]) == 1
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


def test_options_reach_the_recipe_with_their_types():
    options = ["--group-size", "4", "--method", "dapo", "--method.eps-hi=0.3", "--sampling.stop", "a,b", "--freeze", "tower"]
    recipe = cli.resolve("grpo", [*options, "--betas", "0.8,0.9", "--gradient-checkpointing", "yes", "--learning-rate", "1e-5"])
    assert (recipe.group_size, recipe.learning_rate, recipe.betas) == (4, 1e-5, (0.8, 0.9))
    assert type(recipe.method).__name__ == "DAPO" and recipe.method.eps_hi == 0.3
    assert recipe.sampling.stop == ("a", "b") and recipe.freeze == ("tower",) and recipe.gradient_checkpointing is True


def test_dry_run_prints_recipe_arithmetic_and_memory(capsys):
    assert cli.main(["train", "grpo", "--dry-run", "--tasks-per-step", "6", "--group-size", "5"]) == 0
    out = capsys.readouterr().out
    assert "6 tasks x 5 answers = 30 episodes per step" in out
    assert '"type": "GRPO"' in out and "total" in out and "GiB" in out
    assert "(the longest of the first 16)" in out and "assumed" not in out


def test_dry_run_names_what_the_machine_lacks(capsys, tmp_path, monkeypatch):
    """The parameters are counted; a whole step of them, which takes seconds, is not."""
    from fovea import trace

    monkeypatch.setattr(trace, "trace", lambda *_: trace.Memory(*[2**30] * 9))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "grpo:real", "--dry-run"]) == 1
    said = capsys.readouterr()
    assert "tasks x 8 answers" in said.out
    assert "by the published config.json of Qwen2.5-VL-3B-Instruct" in said.out and "3754.6 M parameters, 3122.6 M trained" in said.out
    assert "one picture of 1024 x 768 and a short question, assumed" in said.out and "total" in said.out
    assert "cannot start here: no such file or folder: train.jsonl" in said.err
    assert "cannot start here: Qwen2.5-VL-3B-Instruct: found no such folder" in said.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def reward(answer, task)\n    return 1\n", "mine.py, line 1: running the file raised SyntaxError: expected ':'"),
        (
            "x = 1\nimport no_such_module\n",
            "mine.py, line 2: running the file raised ModuleNotFoundError: No module named 'no_such_module'",
        ),
    ],
)
def test_a_file_that_does_not_run_is_named_with_its_line(text, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(text)
    for command in (["check", "mine.py:reward"], ["train", "--dry-run", "--reward", "mine.py:reward"]):
        assert cli.main(command) == 1
        assert said in capsys.readouterr().err


def test_what_cannot_be_read_is_named(capsys, tmp_path):
    assert cli.main(["generate", "tiny", "--image", str(tmp_path / "no.png"), "--text", "x"]) == 1
    assert capsys.readouterr().err == f"fovea: {tmp_path / 'no.png'}: no such file or directory\n"
    (tmp_path / "config.json").write_text("{")
    assert cli.main(["train", "--model", str(tmp_path), "--dry-run"]) == 1
    assert f"{tmp_path / 'config.json'}: found no JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "said"),
    [("tiny_vlm", "did you mean 'tiny'?"), ("runs/mine2", "did you mean 'runs/mine'?"), ("runs/mine", "found an empty folder")],
)
def test_a_model_that_is_not_there_is_named_with_the_nearest(model, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/mine").mkdir(parents=True)
    assert cli.main(["train", "--model", model, "--dry-run"]) == 1
    assert said in capsys.readouterr().err


def test_dry_run_leaves_a_hub_id_to_the_run(capsys):
    assert cli.main(["train", "--model", "owner/name", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "the run takes it from the hub" in out
    assert "its config.json does not come with fovea; those of Qwen2.5-VL-3B-Instruct, Qwen2.5-VL-7B-Instruct do" in out


def test_dry_run_says_which_columns_are_what(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("problem,gt,level\n1 + 1?,2,easy\n")
    (tmp_path / "mine.py").write_text("from fovea.tasks.load import load\nsource = load('t.csv', verifier='exact')\n")
    assert cli.main(["train", "--data", "mine.py:source", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "prompt <- 'problem', answer <- 'gt'" in out and "unused     'level'" in out and "exact for 1 rows" in out


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)


def test_dry_run_says_that_a_device_would_be_refused(no_gpu, capsys):
    assert cli.main(["train", "--device", "cuda", "--dry-run"]) == 1
    said = capsys.readouterr()
    assert "device = 'cuda'; expected 'cpu', as PyTorch finds no GPU here" in said.out + said.err
    assert "GiB at the peak" in said.out


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda", "device = 'cuda'; expected 'cpu', as PyTorch finds no GPU here: PyTorch"),
        ("cuda:1", "device = 'cuda:1'; expected 'cpu', as PyTorch finds no GPU here"),
        ("mps", "device = 'mps'; expected 'cpu', 'cuda' or 'cuda:N'"),
        ("cuda:x", "device = 'cuda:x'; expected 'cpu', 'cuda' or 'cuda:N'"),
    ],
)
@pytest.mark.parametrize("command", [["train", "--quiet", "--out", "unused"], ["eval", "tiny"], ["serve", "tiny", "--token", "x"]])
def test_a_device_that_is_not_here_is_refused_before_anything_is_loaded(command, device, message, no_gpu, capsys, monkeypatch):
    monkeypatch.setattr("fovea.policies.hf_vlm.HFVLM.load", lambda *a, **k: pytest.fail("loaded"))
    assert cli.main([*command, "--device", device]) == 1
    assert message in capsys.readouterr().err


def test_why_a_gpu_is_not_found(no_gpu, monkeypatch):
    assert problem("cuda").endswith("is a build without CUDA")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert problem("cuda:0").endswith("is the NVIDIA driver installed, and CUDA_VISIBLE_DEVICES not empty?")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert problem("cuda:2") == "device = 'cuda:2'; expected a number below 2, the GPUs that PyTorch finds here"
    assert [problem(d) for d in ("cuda", "cuda:1", "cpu")] == ["", "", ""]


def test_a_method_may_be_named_wherever_a_recipe_is_made():
    assert type(Recipe(method="dapo").method).__name__ == "DAPO"
    assert Recipe().replace(method="dapo", method__eps_hi=0.5).method.eps_hi == 0.5
    with pytest.raises(ValueError, match=r"method 'dappo' is not known; .*did you mean 'dapo'"):
        Recipe(method="dappo")
    for wrong in (GRPO, 7, None):
        with pytest.raises(ValueError, match=r"method = .*, expected a name or an instance of fovea\.methods"):
            Recipe(method=wrong)


def test_unknown_recipe_is_named_with_the_nearest(capsys):
    assert cli.main(["train", "gropo", "--dry-run"]) == 1
    assert "no recipe 'gropo', did you mean 'grpo'" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["recipes", "methods", "verifiers", "tasks", "envs"])
def test_lists_are_complete_and_machine_readable(kind, capsys):
    assert cli.main(["list", kind, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) >= (10 if kind != "envs" else 2) and all(r["name"] and r["summary"] for r in rows)


def test_an_environment_is_checked_by_its_name(capsys):
    assert cli.main(["check", "cards:numberline,side=32"]) == 0
    assert "demonstrate() says the same text twice in a state" in capsys.readouterr().out
    assert cli.main(["check", "cards:nothing"]) == 1 and "no game 'nothing'" in capsys.readouterr().err


def test_missing_data_file_is_named(capsys):
    assert cli.main(["train", "--data", "nowhere/train.jsonl", "--quiet", "--out", "unused"]) == 1
    assert "nowhere/train.jsonl" in capsys.readouterr().err


def test_a_file_that_is_no_picture_is_named(tmp_path, capsys):
    file = tmp_path / "notes.png"
    file.write_text("no picture")
    assert cli.main(["generate", "tiny", "--image", str(file), "--text", "?"]) == 1
    assert "notes.png" in capsys.readouterr().err


def test_impossible_fields_are_told_together():
    from fovea.recipe import Recipe

    wrong = {"schedule": "step", "dtype": "float16", "parallel": "tensor", "on_bad_row": "ask", "max_rows": 0, "betas": (0.9, 1.0)}
    with pytest.raises(ValueError, match="recipe: ") as error:
        Recipe(**wrong, threads=-1, eval_tasks=-1, freeze=("head",))
    for name in (*wrong, "threads", "eval_tasks", "freeze"):
        assert f"{name} = " in str(error.value)


def test_every_part_that_a_policy_can_freeze_is_a_field():
    assert cli.resolve("grpo", ["--freeze", "tower,text"]).freeze == ("tower", "text")


def test_doctor_reports_the_core(capsys):
    cli.main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    versions = {p["name"]: p["version"] for p in found["parts"]}
    assert versions["torch"] and versions["transformers"]


def test_eval_lists_and_takes_only_what_it_reads(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["eval", "--help"])
    said = capsys.readouterr().out
    assert stopped.value.code == 0
    assert "--reward " in said and "reward: overrides each task's verifier" in said
    assert "--learning-rate" not in said and "group_size:" not in said and "--method" not in said
    with pytest.raises(SystemExit) as stopped:
        cli.main(["eval", "tiny", "--group-size", "4"])
    assert stopped.value.code == 2
    assert "--group-size: an evaluation does not read this field" in capsys.readouterr().err
