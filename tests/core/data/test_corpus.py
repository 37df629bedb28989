"""The corpus that every machine has: the same bytes each time, and nothing of the tests or of the machine."""

import json
import re
import subprocess
import sys

import pytest

from llmctl.core.data import corpus
from llmctl.core.data.corpus import documents
from llmctl.errors import UserError

KEYS = {
    "docs": {"text", "source", "kind"},
    "source": {"text", "source", "kind"},
    "summaries": {"prompt", "completion", "source"},
}


@pytest.fixture(scope="module")
def everything():
    return {kind: list(documents(kind)) for kind in KEYS}


@pytest.mark.parametrize(
    ("kind", "records", "size"), [("docs", 3000, 2e6), ("source", 400, 8e6), ("summaries", 1000, 4e5)]
)
def test_there_is_enough_to_learn_from(everything, kind, records, size):
    found = everything[kind]
    assert len(found) > records
    assert sum(len(record.get("text", record.get("prompt"))) for record in found) > size
    assert all(record.keys() == KEYS[kind] and all(record.values()) for record in found)


@pytest.mark.parametrize("kind", KEYS)
def test_no_text_comes_twice_and_no_source_does(everything, kind):
    texts = [record.get("text", record.get("prompt")) for record in everything[kind]]
    assert len(set(texts)) == len(texts)


def test_a_summary_is_the_first_line_of_its_docstring(everything):
    found = {record["source"]: record for record in everything["summaries"]}
    assert found["textwrap.dedent"]["completion"] == "Remove any common leading whitespace from every line in `text`."
    assert found["textwrap.dedent"]["prompt"].startswith("This can be used to make triple-quoted strings line up")


def test_docs_hold_topics_classes_with_their_methods_and_modules_in_c(everything):
    found = {record["source"]: record["text"] for record in everything["docs"]}
    assert "assert" in found["pydoc.assert"]
    assert re.search(
        r"\n    raw_decode\(self, s, idx=0\)\n        Decode a JSON document", found["json.decoder.JSONDecoder"]
    )
    assert found["builtins.len"].startswith("len(obj, /)\n    Return the number of items in a container.")
    assert "gcd" in "".join(source for source in found if source.startswith("math."))


@pytest.mark.parametrize("kind", KEYS)
def test_train_and_test_share_no_text_and_no_name_of_a_function(everything, kind):
    halves = {"train": [], "test": []}
    for record in everything[kind]:
        halves[corpus._split(record["source"])].append(record)
    assert 0.05 < len(halves["test"]) / len(everything[kind]) < 0.15
    names = [{record["source"].rpartition(".")[2] for record in half} for half in halves.values()]
    texts = [{record.get("text", record.get("prompt")) for record in half} for half in halves.values()]
    assert not names[0] & names[1]
    assert not texts[0] & texts[1]


def test_the_two_parts_are_the_whole(everything):
    halves = [list(documents("source", half)) for half in ("train", "test")]
    assert all(halves)
    assert sorted(map(str, halves[0] + halves[1])) == sorted(map(str, everything["source"]))


def test_tests_and_installed_packages_are_left_out(everything):
    modules = [record["source"].split(".") for record in everything["source"]]
    assert not [path for path in modules if {"test", "tests", "idle_test"} & set(path)]
    assert {path[0] for path in modules} <= sys.stdlib_module_names


def test_it_is_the_same_in_every_process_optimised_or_not():
    code = (
        "import hashlib, json, sys\nfrom llmctl.core.data.corpus import documents\n"
        "records = [r for kind in ('docs', 'summaries') for r in documents(kind)]\n"
        "print(hashlib.sha256(json.dumps(records).encode()).hexdigest(), 'antigravity' in sys.modules)"
    )
    runs = [
        (["-OO", "-W", "error"], {"PYTHONHASHSEED": "1", "LC_ALL": "C"}),
        ([], {"PYTHONHASHSEED": "2", "COLUMNS": "9"}),
    ]
    found = {
        subprocess.run([sys.executable, *flags, "-c", code], env=env, check=True, capture_output=True).stdout
        for flags, env in runs
    }
    assert len(found) == 1
    assert found.pop().split()[1] == b"False"


def test_there_are_no_addresses_and_no_paths_of_this_machine(everything):
    text = json.dumps(everything["docs"] + everything["summaries"])
    assert not re.search(r" at 0x[0-9a-f]{9,}", text)
    assert sys.prefix not in text


def test_a_module_that_shadows_one_in_c_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "grp.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "grp", raising=False)
    assert list(corpus._compiled("grp")) == []


def test_a_library_in_a_zip_file_is_read(tmp_path, monkeypatch):
    import zipfile

    with zipfile.ZipFile(tmp_path / "python399.zip", "w") as archive:
        archive.writestr("textwrap.py", '"""Zipped."""\ndef fill(a):\n    """Fill it."""\n')
        archive.writestr("json/__init__.py", '"""Package."""')
        archive.writestr("json/decoder.py", '"""Decoder."""')
        archive.writestr("mine.py", '"""Not of the library."""')
    monkeypatch.syspath_prepend(tmp_path / "python399.zip")
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda *_, **__: str(tmp_path / "nowhere"))
    assert [name for name, _ in corpus._modules()] == ["json", "json.decoder", "textwrap"]
    assert {record["source"] for record in documents("docs")} >= {"textwrap.fill", "json.decoder"}


def test_a_python_without_sources_is_a_user_error(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda *_, **__: str(tmp_path))
    with pytest.raises(UserError, match="no standard library sources"):
        list(documents("source"))
