"""scripts/abi: its files are current, a field needs nothing else, what a header does not say is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from headers import engine, files, initializers, layout, python, reader, reference

TEXTS = {path.name: path.read_text() for path in reader.PATHS}
SOURCES = reader.ROOT / "Sources"


def changed(before: str, after: str) -> reader.Headers:
    """Read the headers with one passage written in another way."""
    assert sum(text.count(before) for text in TEXTS.values()) == 1, before
    return reader.read({name: text.replace(before, after) for name, text in TEXTS.items()})


def test_every_file_is_current() -> None:
    assert files.outdated(files.generated(reader.read())) == []


def test_every_link_of_the_reference_leads_somewhere() -> None:
    pages = {path.name: path.read_text() for path in (reader.ROOT / "docs" / "reference").glob("*.md")}
    pages["../functions.md"] = (reader.ROOT / "docs" / "functions.md").read_text()
    anchors = {}
    for name, text in pages.items():
        titles = re.findall(r"^#+ (.+)$", text, re.M)
        anchors[name] = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    links = 0
    for name, text in pages.items():
        if name != "../functions.md":
            for page, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", text):
                assert not anchor or anchor in anchors[page or name], (name, page, anchor)
                assert (page or name) in pages
                links += 1
    assert links > 500


def test_pages_have_all_that_the_headers_have() -> None:
    """Every name under a heading of its own, every constant and field, and equations between fields."""
    headers = reader.read()
    text = "\n".join(reference.pages(headers, "").values())
    named = [*headers.functions, *headers.structs, *headers.enums, *headers.handles]
    assert set(named) <= set(re.findall(r"^## (\w+)$", text, re.M))
    for enum in headers.enums.values():
        assert all(f"`{member.name} = {member.value}`" in text for member in enum.members)
    for struct in headers.structs.values():
        assert all(f"`{f.declared}`" in text or f"`{f.name}`" in text for f in struct.fields)
    assert "chosen = the K largest of s + selection bias" in text
    assert "from lr / div_factor up to lr at step top" in text


def test_the_notes_on_functions_are_on_functions_that_there_are() -> None:
    text = (reader.ROOT / "docs" / "functions.md").read_text()
    named = set(re.findall(r"\w+", " ".join(re.findall(r"^### (.+)$", text, re.M))))
    assert named - set(reader.read().functions) <= {"and"}


def test_a_new_field_needs_nothing_but_itself() -> None:
    """Its value in the macro, its type, its meaning, its place and its words follow."""
    last = "as the others have it (ERNIE-4.5) */\n} moe_layer_config;"
    field = "  int32_t colour;  /**< a moe_score */\n  float shade; /**< >= 0 */\n} moe_layer_config;"
    headers = changed(last, last.replace("} moe_layer_config;", field))
    struct = headers.structs["moe_layer_config"]
    assert list(initializers.values(headers, struct).values())[-2:] == ["0", "0.0f"]
    written = python.abi(headers)
    assert '        ("colour", c_int32),\n        ("shade", c_float),\n    ]' in written
    assert '        "colour": SCORE,\n' in written
    before = (SOURCES / "CMoE" / "abi.c").read_text()
    assert "offsetof(moe_layer_config, colour) == 412," in layout.pinned(headers, before)
    assert "sizeof(moe_layer_config) == 424," in layout.pinned(headers, before)


def test_some_words_of_an_enum_are_a_type_of_their_own() -> None:
    headers = changed("a moe_shared_gate; they", "MOE_SHARED_PLAIN or SIGMOID; they")
    written = python.abi(headers)
    assert '"shared_gate": {"plain": 0, "sigmoid": 1},' in written
    known = python.literals(headers)
    assert known["SharedGate"] == ("plain", "sigmoid", "residual")
    assert known["LayerSharedGate"] == ("plain", "sigmoid")


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ("/**< a moe_matmul */", "/**< who computes */", "matmul: its comment, 'who computes', does not"),
        ("/**< a moe_matmul */", "", "moe_context_config.matmul: has no comment"),
        ("/**< a moe_noise */", "/**< a moe_nosie */", "moe_layer_config.noise: there is no enum moe_nosie"),
        ("/**< a sum of moe_unallocated;", "/**< moe_unallocated;", "ed: its comment"),
        ("MOE_EXPERT_MLP or MOE_EXPERT_GATED", "MOE_EXPERT_MLP or MOE_NORM_RMS", "not constants of one"),
        ("@param taped    [in] 1 = forward", "@param taped    [in] forward", "plan, taped: its comment"),
        ("a moe_prepared; packs again what is packed already\n", "\n", "prepare, prepared: its comment"),
        ("Its files: OLMOE,", "Its files: OLMO,", "moe_preset_olmoe: there is no layout OLMO"),
        (".  Its files: JAMBA */", " */", "moe_preset_jamba: write behind it what it is"),
        ("MOE_API void moe_plan_init(", "MOE_API void moe_plan_fill(", "no function moe_plan_init"),
        ("MOE_BIAS_ON = 2", "MOE_BIAS_ON", "moe_bias: 'MOE_BIAS_ON' has no number"),
        ("int64_t n_tokens;      /**< T */", "int64_t *n_tokens[2][2]; /**< T */", "does not understand"),
        ("(moe_plan), 0, 0, 0, 0, 0, 0, 0, 0", "(moe_plan), 0, 0, 0, 0, 0, 0, 0, 0, 0", "has 10 values"),
        ("sizeof(moe_read_options), NULL", "sizeof(moe_read_options), 0", "gives valid_mask the value 0"),
        ("0.97, 2.5, 25, 0.0", "0.97, 25, 2.5, 0.0", "gives threshold the value 25, which is none of double"),
    ],
)  # fmt: skip
def test_what_a_header_does_not_say_is_refused(before: str, after: str, text: str) -> None:
    with pytest.raises(reader.HeaderError, match=re.escape(text)):
        headers = changed(before, after)
        files.generated(headers)


def test_a_field_that_moves_is_refused() -> None:
    pins = (SOURCES / "CMoE" / "abi.c").read_text()
    headers = changed("  int64_t hits;", "  int64_t tries; /**< of both kinds */\n  int64_t hits;")
    with pytest.raises(
        reader.HeaderError, match=r"moe_offload_statistics.hits: has moved from 8 to 16; .*SONAME"
    ):
        layout.pinned(headers, pins)
    assert "offsetof(moe_offload_statistics, hits) == 16" in layout.pinned(headers, "")


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("case plain = 0\n  case sigmoid = 1\n  case residual = 2", ""),
        ("case plain = 0\n  case logistic = 1  // SIGMOID\n  case residual = 2", ""),
        ("case sigmoid = 1\n  case residual = 2", ""),  # 0 is none
        ("case plain = 0\n  case sigmoid = 2\n  case residual = 1", "sigmoid = 2, which is no constant"),
        ("case plain = 0\n  case logistic = 1\n  case residual = 2", "logistic = 1, which is no constant"),
        ("case plain = 0\n  case sigmoid = 1", "has no case for residual of moe_shared_gate"),
    ],
)
def test_numbers_of_the_engine_are_those_of_the_header(case: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "CShims" / "include").mkdir(parents=True)
    (tmp_path / "CShims" / "include" / "moei.h").write_text("")
    (tmp_path / "MoE").mkdir()
    swift = (
        f"/// Of shared experts. Numbers as in moe_shared_gate.\npublic enum Gate: Int32 {{\n  {case}\n}}\n"
    )
    (tmp_path / "MoE" / "Gate.swift").write_text(swift)
    if text:
        with pytest.raises(reader.HeaderError, match=f"Gate.swift, Gate: {text}"):
            engine.check(reader.read(), tmp_path)
    else:
        assert engine.check(reader.read(), tmp_path) == 1


def test_no_enum_of_the_engine_is_passed_over() -> None:
    """As many are compared as say, in plain words, whose numbers they have."""
    said = 0
    for path in [
        *SOURCES.glob("MoE/**/*.swift"),
        *SOURCES.glob("Kernels/*.swift"),
        *SOURCES.glob("CShims/**/*.h"),
    ]:
        said += len(
            re.findall(
                r"umbers as in moei?_\w+\.?(?=[^\n]*\n(?:[^\n]*///?[^\n]*\n)*[^\n]*\benum )", path.read_text()
            )
        )
        said += len(re.findall(r"enum \w+: Int32[^\n]*\{\n[^\n]*umbers as in moe_", path.read_text()))
    assert engine.check(reader.read(), SOURCES) == said > 20
