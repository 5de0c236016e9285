"""``rp-lib data`` and ``data_download.sh``: what they say, and the exit codes that a script can use."""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from data_server import Fault, Server, child_code
from tqdm import tqdm

from rp_lib import cli
from rp_lib.data import load_sources

SCRIPT = Path(__file__).resolve().parents[2] / "data_download.sh"
GOOD, OTHER = b"numbers" * 100, b"letters" * 100


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server()
    yield running
    running.close()


@pytest.fixture
def table(server, tmp_path, monkeypatch):
    """Six small data sets, one for each way to end."""

    def row(path: str, body: bytes = GOOD, **more) -> dict:
        file = {"name": f"{path}.npy", "urls": [f"{server.base}/{path}"], "md5": hashlib.md5(body).hexdigest()}
        return {"title": path, "role": "OOD", "groups": ["g"], "homepage": "http://127.0.0.1/", "files": [file | more]}

    server.put("good", GOOD)
    server.put("better", OTHER)
    server.put("wrong", b"other bytes")
    data = {
        "good": row("good", size=len(GOOD)),
        "better": row("better", OTHER) | {"licence": "CC0", "groups": []},
        "gone": row("gone"),
        "wrong": row("wrong"),
        "vast": row("vast", size=10**15),
        "asked": {k: v for k, v in row("asked").items() if k != "files"} | {"by_hand": "ask the authors"},
    }
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"groups": {"g": "a group"}, "data": data}))
    monkeypatch.setattr("rp_lib.data.sources.load_sources", lambda: load_sources(path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RP_DATA", raising=False)
    return data


def run(*arguments: str) -> int:
    return cli.main(["data", "--attempts", "1", *arguments])


@pytest.mark.parametrize(
    ("names", "code", "message"),
    [
        (["good"], 0, ""),
        (["good", "better"], 0, ""),
        (["goood"], 2, "did you mean good"),
        ([], 2, "name data sets or groups (g, all), or pass --list"),
        (["gone"], 3, "HTTP 404"),
        (["wrong"], 4, "md5 is"),
        (["vast"], 5, "make room there, or choose another disk with --root"),
        (["asked"], 6, "ask the authors"),
        (["good", "gone", "asked"], 3, "2 of 3 data sets failed: gone, asked"),
        (["vast", "gone"], 5, "2 of 2"),
        (["g"], 4, "4 of 5 data sets failed: gone, wrong, vast, asked"),
        (["--timeout", "0", "good"], 2, "--timeout"),
        (["--attempts", "0", "good"], 2, "--attempts"),
        (["--mirror", "file:///etc", "good"], 2, "--mirror: 'file:///etc' is no http(s) address"),
        (["--folder", "asked"], 2, "NAME=PATH"),
        (["--folder", "askd=."], 2, "did you mean asked"),
        (["--folder", "asked=nowhere"], 2, "is no folder"),
        (["--check", "good"], 6, "good is not in data: rp-lib data --root data good"),
        (["--check"], 6, "nothing was downloaded to data, so nothing was checked"),
    ],
)
def test_exit_codes(table, capsys, names, code, message):
    assert run(*names) == code
    said = capsys.readouterr()
    assert message in said.err and "Traceback" not in said.err
    if code == 0:
        assert said.err == ""
    if "good" in names and code in (0, 3):  # one failure keeps no other data set from coming
        assert Path("data/good/good.npy").read_bytes() == GOOD and "good: there" in said.out


def test_help_documents_every_exit_code(capsys):
    from rp_lib.data import sources as errors

    with pytest.raises(SystemExit):
        cli.main(["data", "--help"])
    said = capsys.readouterr().out
    script = SCRIPT.read_text()
    for error in (errors.DownloadError, errors.VerificationError, errors.NoSpace, errors.NotThere):
        assert f"\n  {error.exit_code}  " in said and f"{error.exit_code} " in script
    assert "\n  0  " in said and "\n  2  " in said and "\n  130  " in said


def test_list(table, capsys, tmp_path):
    run("good")
    capsys.readouterr()
    assert run("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "role", "download", "licence", "or", "terms", "here"]
    assert lines[1].split() == ["good", "OOD", "700", "bytes", "none", "found", "there,", "700", "bytes"]
    assert lines[2].split() == ["better", "OOD", "unknown", "CC0", "-"]
    assert any(line.split()[:4] == ["asked", "OOD", "by", "hand"] for line in lines)
    assert "  g: a group (good, gone, wrong, vast, asked)" in lines
    assert run("--list", "better") == 0
    said = capsys.readouterr().out
    assert (
        "good" not in said
        and hashlib.md5(OTHER).hexdigest() in said
        and "/better" in said
        and "http://127.0.0.1/" in said
    )


def test_the_true_list_is_whole(capsys, tmp_path):
    assert cli.main(["data", "--list", "--root", str(tmp_path / "none")]) == 0
    said = capsys.readouterr().out
    for name, data in load_sources().data.items():
        assert any(line.startswith(f"{name} ") and data.role in line for line in said.splitlines())
    assert not (tmp_path / "none").exists()


def test_dry_run_asks_nobody_and_writes_nothing(table, server, capsys):
    assert run("--dry-run", "all") == 0
    said = capsys.readouterr().out
    assert f"good.npy, 700 bytes, {server.base}/good" in said and "asked: by hand: ask the authors" in said
    assert "are free for data" in said and server.log == [] and not Path("data").exists()
    run("good")
    capsys.readouterr()
    run("--dry-run", "good")
    assert "good: there, 700 bytes; nothing to do" in capsys.readouterr().out


def test_check(table, capsys):
    run("good", "better")
    assert run("--check") == 0
    assert "better: there" in capsys.readouterr().out
    Path("data/better/better.npy").write_bytes(OTHER[::-1])
    assert run("--check") == 4
    assert "better.npy has another content" in capsys.readouterr().err
    assert run("--check", "good") == 0


def test_root_and_environment(table, monkeypatch, tmp_path):
    monkeypatch.setenv("RP_DATA", str(tmp_path / "by environment"))
    assert run("good") == 0 and (tmp_path / "by environment/good/good.npy").is_file()
    assert run("good", "--root", "by option") == 0 and Path("by option/good/good.npy").is_file()


def test_folder(table, capsys):
    Path("mine").mkdir()
    Path("mine/1.jpg").write_bytes(b"x")
    assert run("--folder", "asked=mine", "good") == 0
    assert f"asked: there: {Path('mine').resolve()}" in capsys.readouterr().out
    assert run("--check", "asked") == 0 and run("asked") == 0


def test_mirror(table, server):
    server.put("lab/gone/gone.npy", GOOD)
    assert run("gone", "--mirror", f"{server.base}/lab") == 0
    assert Path("data/gone/gone.npy").read_bytes() == GOOD


def test_quiet_says_only_what_is_wrong(table, capsys):
    assert run("--quiet", "good") == 0 and capsys.readouterr() == ("", "")
    assert run("--quiet", "gone") == 3 and "404" in capsys.readouterr().err


def test_progress_bar_on_a_terminal_only(table, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert run("good") == 0
    assert "good.npy: 100%" in capsys.readouterr().err


def test_interrupted(table, capsys, monkeypatch, server):
    def stop(self, *args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tqdm, "update", stop)
        assert run("good") == 130
    assert "run the same command again" in capsys.readouterr().err
    assert run("good") == 0


def test_a_root_that_cannot_be_made(table, capsys):
    Path("file").write_text("in the way")
    assert run("good", "--root", "file/data") == 2
    assert "Traceback" not in capsys.readouterr().err


# The shell script


def light_python(folder: Path, body: str) -> Path:
    """A ``.venv/bin/python`` that starts at once: ``rp-lib data`` without the torch of the other commands."""
    path = folder / ".venv" / "bin" / "python"
    path.parent.mkdir(parents=True)
    path.write_text(body)
    path.chmod(0o755)
    return path


RUNNER = f"""#!{sys.executable}
import sys
if sys.argv[1] == "-c":
    exec(sys.argv[2])
else:
    assert sys.argv[1:3] == ["-m", "rp_lib"]
    arguments = sys.argv[3:]
    {{code}}
    from rp_lib.cli import build_parser
    from rp_lib.utils.errors import RPLibError
    args = build_parser().parse_args(arguments)
    try:
        args.run(args)
    except RPLibError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "a clone with spaces"
    folder.mkdir()
    shutil.copy(SCRIPT, folder)
    code = "\n    ".join(line for line in child_code("").splitlines() if line)
    light_python(folder, RUNNER.format(code=code))
    return folder


def script(clone: Path, *arguments: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess:
    clean = {"PATH": "/usr/bin:/bin", "no_proxy": "127.0.0.1", **env}
    return subprocess.run(
        [clone / "data_download.sh", *arguments],
        cwd=cwd or clone,
        env=clean,
        capture_output=True,
        text=True,
        timeout=20,
    )


def test_script_passes_everything_on_from_any_directory(clone, tmp_path):
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    done = script(clone, "--list", "mos", "--root", "my data", cwd=elsewhere)
    assert done.returncode == 0 and done.stdout.startswith("name") and "inaturalist" in done.stdout, done.stderr
    done = script(clone, "imagenet-1k", "--root", "my data", cwd=elsewhere)
    assert done.returncode == 6 and "--root my data --folder imagenet-1k=FOLDER" in done.stderr
    done = script(clone, "no such $(touch pwned) set", cwd=elsewhere)
    assert done.returncode == 2 and "no such $(touch pwned) set" in done.stderr
    assert not (elsewhere / "pwned").exists()


def test_script_downloads(clone, server, tmp_path):
    """A true row of the table from a mirror that has other bytes; the world beyond is a closed port."""
    server.put("m/cifar10.1/cifar10.1_v6_labels.npy", b"x" * 8128)
    server.put("m/cifar10.1/cifar10.1_v6_data.npy", b"x", Fault(status=404))
    closed = "http://127.0.0.1:9"
    options = ("--attempts", "1", "--timeout", "1", "--mirror", f"{server.base}/m", "--root", "d")
    done = script(clone, "cifar10.1", *options, https_proxy=closed, http_proxy=closed)
    assert done.returncode == 3 and "HTTP 404" in done.stderr and "github.com" in done.stderr, done.stderr
    server.put("m/cifar10.1/cifar10.1_v6_data.npy", gzip.compress(b"x"))
    done = script(clone, "cifar10.1", *options, https_proxy=closed, http_proxy=closed)
    assert done.returncode == 4 and "instead of 6,144,128" in done.stderr


@pytest.mark.parametrize("python3", [None, "#!/bin/sh\nexit 1\n"])
def test_script_without_an_installation_says_what_to_do(tmp_path, python3):
    folder = tmp_path / "clone"
    folder.mkdir()
    shutil.copy(SCRIPT, folder)
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("dirname", "sh"):
        (tools / tool).symlink_to(shutil.which(tool))
    if python3:
        (tools / "python3").write_text(python3)
        (tools / "python3").chmod(0o755)
    done = script(folder, "--list", PATH=str(tools))
    assert done.returncode == 2 and "rp_lib is not installed" in done.stderr and "pip install -e ." in done.stderr


def test_script_does_not_take_the_sources_alone_for_an_installation(tmp_path):
    (tmp_path / "rp_lib").mkdir()
    (tmp_path / "rp_lib" / "__init__.py").write_text("")
    shutil.copy(SCRIPT, tmp_path)
    tools = tmp_path / "bin"
    tools.mkdir()
    # An interpreter without site-packages, as a fresh system has it.
    (tools / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -s "$@"\n')
    (tools / "python3").chmod(0o755)
    done = script(tmp_path, "--list", PATH=f"{tools}:/usr/bin:/bin")
    assert done.returncode == 2 and "rp_lib is not installed" in done.stderr


def test_script_holds_no_logic_and_quotes_everything():
    text = SCRIPT.read_text()
    assert os.access(SCRIPT, os.X_OK) and text.startswith("#!/bin/sh\n")
    assert text.rstrip().endswith('exec "$python" -m rp_lib data "$@"')
    assert subprocess.run(["sh", "-n", SCRIPT]).returncode == 0
    if shutil.which("shellcheck"):
        assert subprocess.run(["shellcheck", SCRIPT]).returncode == 0
    code = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(code) < 20 and not any(word in text for word in ("curl", "wget", "http"))


@pytest.mark.parametrize("arguments", [["--help"], ["--list"], ["--dry-run", "all"], ["nonsense"]])
def test_no_torch_is_imported_for_words(tmp_path, arguments):
    code = f"""
import sys
from rp_lib.cli import main
try:
    main(["data", *{arguments}])
finally:
    assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr
