"""Chat templates: conversations as text, by the folder's own program in the language of jinja2."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import ArgumentTypeError, FileError, InvalidArgumentError

CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
# Special tokens that templates know by these names.
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_ASKS_FOR_TYPES = re.compile(r"""\.type\b|['"]type['"]""")


class ChatTemplate:
    """A folder's chat template and the special tokens that it may use.

    Parameters
    ----------
    source : str
        The template.
    special : mapping of str to str
        Texts of the special tokens, such as ``{"bos_token": "<s>"}``.
    """

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        self.source = source
        self.special = dict(special)

    @classmethod
    def of(cls, folder: Path) -> ChatTemplate:
        """Read that of a folder: chat_template.jinja, or what tokenizer_config.json has.

        Raises
        ------
        InvalidArgumentError
            There is none, or a file is not what it should be.
        FileError
            A file cannot be read.
        """
        config = _config(folder / CONFIG)
        source = _source(folder, config)
        if source is None:
            raise InvalidArgumentError(
                f"{str(folder)!r} has no chat template, neither {TEMPLATE} nor chat_template in {CONFIG}: "
                "its model may know no conversations; let it continue a text (generate), or put one there"
            )
        return cls(source, {name: _text(config[name]) for name in _SPECIAL if config.get(name)})

    def render(self, messages: Sequence[Mapping[str, Any]], *, reply: bool = True, **variables: Any) -> str:
        """Return a conversation as text, with the beginning of a reply behind it if `reply`.

        Raises
        ------
        ArgumentTypeError
            The messages are no sequence of dicts, or a content is no text.
        InvalidArgumentError
            jinja2 is missing, the template is none, or it refuses the messages.
        """
        self._require_messages(messages)
        environment = _environment()
        try:
            template = environment.from_string(self.source)
            return str(
                template.render(
                    messages=list(messages), add_generation_prompt=reply, **{**self.special, **variables}
                )
            )
        except Exception as error:  # of a program that somebody else wrote
            raise InvalidArgumentError(f"the chat template refuses these messages: {error}") from None

    def _require_messages(self, messages: Any) -> None:
        """Refuse what is no conversation: a template would write it as Python shows it, or not at all."""
        example = '[{"role": "user", "content": "hello"}]'
        if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
            raise ArgumentTypeError(
                f"messages: expected a list of dicts, got {type(messages).__name__}; use {example}"
            )
        for n, message in enumerate(messages):
            name = f"messages[{n}]"
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                got = "one without a role" if isinstance(message, Mapping) else type(message).__name__
                raise ArgumentTypeError(f"{name}: expected a dict with a role, got {got}; use {example}")
            content = message.get("content", "")  # a template may have no use for it
            if isinstance(content, str) or content is None and message.get("tool_calls"):
                continue
            # A template that knows parts asks for their types.
            if isinstance(content, list) and _ASKS_FOR_TYPES.search(self.source):
                continue
            raise ArgumentTypeError(
                f"{name}: expected its content to be a str, got {type(content).__name__}; give the text alone"
            )


def _config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise FileError(f"{str(path)!r}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{str(path)!r} is no JSON: {error}") from None
    return found if isinstance(found, dict) else {}


def _source(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Return the template; of several by name the default one."""
    path = folder / TEMPLATE
    if path.exists():
        try:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            raise FileError(f"{str(path)!r}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise InvalidArgumentError(f"{str(path)!r}: {error}") from None
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _text(token: Any) -> str:
    """Return a special token's text: itself, or the content of an object."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token)


def _environment() -> Any:
    """Return where templates are rendered, as transformers does it."""
    try:
        import jinja2
        import jinja2.ext
        import jinja2.sandbox
    except ImportError:
        raise InvalidArgumentError(
            "chat templates are rendered by the package jinja2, which is not installed: "
            "pip install 'libmoe[chat]'"
        ) from None

    class Generation(jinja2.ext.Extension):
        """The block {% generation %}, which says what an assistant wrote, and changes no text."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    # A folder's template is somebody else's program.
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


class _RefusedError(Exception):
    """A template calls the conversation wrong."""


def _refuse(message: str) -> None:
    raise _RefusedError(message)


def _to_json(value: Any, indent: int | None = None, **how: Any) -> str:
    """Write JSON as it is, not for a web page."""
    return json.dumps(value, ensure_ascii=False, indent=indent, **how)
