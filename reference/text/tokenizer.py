"""Text <-> token ids, chat prompts and stop ids, from a checkpoint folder in Hugging Face format.

tokenizer.json says all there is to know about encoding and decoding; five more files may stand beside it:

    tokenizer_config.json     which token is bos, eos, ...; the chat template (one, or a list of named ones)
    special_tokens_map.json   the same tokens, in old folders: read when tokenizer_config.json lists no added tokens
    chat_template.jinja       the chat template, in new folders: wins when present; more in additional_chat_templates/
    generation_config.json    stop ids; its sampling defaults are never applied, they would change the distribution
    config.json               stop ids; the file is the model's, so it is read but not saved

Four traps, and what is done about them.
- `encode` runs the post-processor, which for some families adds a BOS. A rendered chat has its own: `chat_prompt` adds
  none.
- A text that spells a special token ("<|im_end|>") is encoded as that token. `encode(..., literal=True)` takes it as
  plain text, and `chat_prompt` takes what the *messages* say so: a question or a draft cannot end its own turn.
- encode(a) + encode(b) is not encode(a + b), and decode loses what encode would need. Ids are the state of a response;
  never encode decoded text to continue it.
- One token is not one character: to show a text while it grows, use `StreamDecoder`.

Templates are rendered as transformers renders them (sandboxed jinja2, `trim_blocks`, `lstrip_blocks`, loop controls,
`{% generation %}` blocks), but for the date: `strftime_now` is frozen, or prompts would change from day to day
(`reference/text/rendering.py`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from torch import Tensor

from reference.text.rendering import render
from reference.transformer import write_whole

FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
    "chat_template.jinja",
)  # fmt: skip
# Unicode noncharacters, reserved for a program's own use; they are removed from texts that are taken literally.
QUOTED, WRITTEN = "\ufdd0", "\ufdd1"  # before a special token's string: in a message's text; by the template itself

Message = Mapping[str, Any]  # {"role": "user", "content": "..."}, and what else the template reads


def tokenizer_files(folder: Path) -> list[str]:
    """The names of those of its files that are read."""
    more = [path.relative_to(folder).as_posix() for path in folder.glob("additional_chat_templates/*.jinja")]
    return [name for name in (*FILES, "config.json", *sorted(more)) if (folder / name).is_file()]


class Tokenizer:
    """A `tokenizers.Tokenizer` with its special tokens, chat templates and stop ids."""

    def __init__(self, files: Mapping[str, bytes], source: str = "tokenizer"):
        """files: contents by name, as above; only tokenizer.json is needed. source: how errors name the whole."""
        self.files, self.source = dict(files), source
        self.told: dict[str, Any] = {}  # what chat templates are told, whoever asks
        try:
            self.backend = Backend.from_buffer(self.files["tokenizer.json"])
        except Exception as error:  # the library raises bare Exceptions too
            raise ValueError(f"{source}: tokenizer.json cannot be read ({first_line(error)}); fetch it again") from None
        self.backend.no_truncation()  # some files carry a length to cut to; nothing may be cut unseen
        self.backend.no_padding()
        added = self.backend.get_added_tokens_decoder()
        # By id: what tokenizer.json marks as special. (transformers adds whatever tokenizer_config.json calls by name.)
        self.special = {i: token for i, token in added.items() if token.special}
        longest_first = sorted((token.content for token in self.special.values()), key=len, reverse=True)
        self.special_pattern = f"(?:{'|'.join(map(re.escape, longest_first)) or '(?!)'})"  # (?!) matches nothing
        self.special_tokens = self.read_special_tokens()  # {"eos_token": "<|im_end|>", ...}
        self.stop_ids = self.read_stop_ids()
        self.chat_templates = self.read_chat_templates()  # by name; {} if there is none

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> Tokenizer:
        """Read a local folder. FileNotFoundError: no folder, or no tokenizer.json in it. ValueError: a broken file."""
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"no such folder: {folder}; give a checkpoint's folder")
        if not (folder / "tokenizer.json").is_file():
            raise FileNotFoundError(
                f"{folder / 'tokenizer.json'} does not exist; a tokenizer in another format (tokenizer.model, "
                "vocab.json) must be converted: load it with transformers.AutoTokenizer and save it"
            )
        return cls({name: (folder / name).read_bytes() for name in tokenizer_files(folder)}, str(folder))

    def save(self, folder: str | os.PathLike) -> None:
        """Write the files that this was read from, byte for byte, each whole or absent; config.json is the model's.

        A file of another tokenizer that stands there and that this one lacks is removed: it would be read with these.
        """
        for name in (name for name in FILES if name not in self.files):
            (Path(folder) / name).unlink(missing_ok=True)
        for name, content in self.files.items():
            if name != "config.json":
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, lambda part, content=content: part.write_bytes(content))

    # -- Text and ids

    @property
    def vocab_size(self) -> int:
        """Ids that stand for something; a model may have more rows than that."""
        return self.backend.get_vocab_size()

    def encode(self, text: str, special_tokens: bool = True, literal: bool = False) -> list[int]:
        """special_tokens: let the post-processor add what it adds (a BOS, say); false for a rendered chat.
        literal: a special token's string in the text is plain text, not the token. ValueError: it is no text."""
        if not isinstance(text, str) or (not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text)):
            raise ValueError(f"{str(text)[:40]!a} is no text that can be encoded (a lone surrogate, or no text at all)")
        if literal:
            return self.literal_backend.encode(text.replace(WRITTEN, ""), add_special_tokens=special_tokens).ids
        try:
            return self.backend.encode(text, add_special_tokens=special_tokens).ids
        except Exception as error:  # tokenizers raises nothing more special
            raise ValueError(f"{text[:40]!r} cannot be encoded ({error}); use words of the vocabulary") from None

    def decode(self, ids: Iterable[int] | Tensor, skip_special_tokens: bool = True) -> str:
        """Ids that stand for nothing (a model's padding rows) give nothing; broken UTF-8 gives "\ufffd"."""
        ids = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)

    @cached_property
    def literal_backend(self) -> Backend:
        """A twin that reads special tokens only where WRITTEN stands before them: with ids of its own, see
        `chat_prompt`. Made when first needed; most texts never do."""
        twin = Backend.from_str(self.backend.to_str())
        twin.encode_special_tokens = True  # what is marked as special is plain text; so these are not marked
        for token in self.special.values():
            flags = {"lstrip": token.lstrip, "rstrip": token.rstrip, "single_word": token.single_word}
            twin.add_tokens([AddedToken(content=WRITTEN + token.content, normalized=False, special=False, **flags)])
        return twin

    # -- Chats

    def tell(self, **variables: Any) -> None:
        """Whatever is rendered from now on, the chat templates are told this. ValueError: none of them reads it."""
        for name in variables:
            if not any(re.search(rf"\b{re.escape(name)}\b", text) for text in self.chat_templates.values()):
                raise ValueError(f"{self.source}: no chat template reads {name}; leave it out")
        self.told |= variables

    def render_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, template: str | None = None, **variables
    ) -> str:
        """The chat as the template writes it, ending where the assistant's answer begins.

        template: the name of one of several (default: "tool_use" if there are tools, else "default"). variables: what
        else it reads: tools, documents, enable_thinking, date_string, ... ValueError: no template, none of that name,
        or it refuses the messages.
        """
        if not self.chat_templates:
            raise ValueError(f"{self.source}: there is no chat template; use a chat model, or prompts without one")
        if not messages or not all(isinstance(message, Mapping) for message in messages):
            raise ValueError(f"messages are {messages!r}; give a list of at least one {{'role': ..., 'content': ...}}")
        variables = {"tools": None, "documents": None, **self.special_tokens, **self.told, **variables}
        has_tools = variables["tools"] is not None and "tool_use" in self.chat_templates
        wanted = template or ("tool_use" if has_tools else "default")
        if wanted not in self.chat_templates:
            names = ", ".join(sorted(self.chat_templates))
            raise ValueError(f"{self.source}: there is no chat template {wanted!r}; there are {names}")
        messages = [{key: value for key, value in m.items() if value is not None} for m in messages]
        try:
            told = {"messages": messages, "add_generation_prompt": add_generation_prompt, **variables}
            return render(self.chat_templates[wanted], **told)
        except Exception as error:  # a template is a foreign program: whatever it raises is about its input
            raise ValueError(f"{self.source}: the chat template {wanted!r} failed: {first_line(error)}") from None

    def chat_prompt(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, literal: bool = True, **variables
    ) -> list[int]:
        """The ids of `render_chat`, with no BOS but the template's own.

        literal: the special tokens are those that the template writes; their strings in messages and variables are
        plain text. (False is what transformers does when nothing else is asked: a message can end its own turn.)
        """
        if literal:
            messages, variables = self.quote(messages), self.quote(variables)
        text = self.render_chat(messages, add_generation_prompt, **variables)
        if not (literal and QUOTED in text):
            return self.encode(text, special_tokens=False)
        # One encoding of the whole, so that no seam shows: the twin reads the tokens that the template has written.
        text = re.sub(f"(?<!{QUOTED}){self.special_pattern}", rf"{WRITTEN}\g<0>", text).replace(QUOTED, "")
        own_id = {self.literal_backend.token_to_id(WRITTEN + token.content): i for i, token in self.special.items()}
        return [own_id.get(i, i) for i in self.literal_backend.encode(text, add_special_tokens=False).ids]

    def quote(self, value: Any) -> Any:
        """`value` with QUOTED before every special token's string, in all the strings that it holds."""
        if isinstance(value, str):
            return re.sub(self.special_pattern, rf"{QUOTED}\g<0>", re.sub(f"[{QUOTED}{WRITTEN}]", "", value))
        if isinstance(value, Mapping):
            return {key: self.quote(part) for key, part in value.items()}
        return [self.quote(part) for part in value] if isinstance(value, list | tuple) else value

    # -- Reading the files

    def read_json(self, name: str) -> dict[str, Any]:
        """{} for a file that is not there. ValueError: it is not a JSON object."""
        try:
            content = json.loads(self.files.get(name, b"{}"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.source}: {name} is not valid JSON ({error}); fetch it again") from None
        if not isinstance(content, dict):
            raise ValueError(f"{self.source}: {name} holds a {type(content).__name__}, not an object; fetch it again")
        return content

    def read_special_tokens(self) -> dict[str, str]:
        named = self.read_json("tokenizer_config.json")
        if "added_tokens_decoder" not in named:
            named = {**named, **self.read_json("special_tokens_map.json")}
        contents = {key: value.get("content") if isinstance(value, dict) else value for key, value in named.items()}
        return {key: text for key, text in contents.items() if key.endswith("_token") and isinstance(text, str)}

    def read_stop_ids(self) -> frozenset[int]:
        """The union of the three places that name ids which end a response: each is incomplete for some family."""
        stops: set[int] = set()
        for name in ("generation_config.json", "config.json"):
            value = self.read_json(name).get("eos_token_id")
            ids = value if isinstance(value, list) else [] if value is None else [value]
            if not all(type(i) is int and i >= 0 for i in ids):
                raise ValueError(f"{self.source}: {name} has eos_token_id {value!r}; it must be an id or a list of ids")
            stops.update(ids)
        if (eos := self.special_tokens.get("eos_token")) is not None:
            if (i := self.backend.token_to_id(eos)) is None:
                raise ValueError(f"{self.source}: the eos_token {eos!r} has no id in tokenizer.json; correct its name")
            stops.add(i)
        return frozenset(stops)

    def read_chat_templates(self) -> dict[str, str]:
        try:
            shipped = {Path(name).stem: text.decode() for name, text in self.files.items() if name.endswith(".jinja")}
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.source}: a chat template is not UTF-8 ({error}); fetch it again") from None
        if shipped:
            return {"default" if name == "chat_template" else name: text for name, text in shipped.items()}
        value = self.read_json("tokenizer_config.json").get("chat_template") or {}
        if not isinstance(value, str | list | dict):
            raise ValueError(f"{self.source}: chat_template in tokenizer_config.json is {value!r}; it must be a text")
        try:
            if isinstance(value, list):
                return {entry["name"]: entry["template"] for entry in value}
            return dict(value) if isinstance(value, dict) else {"default": str(value)}
        except (KeyError, TypeError):
            raise ValueError(
                f"{self.source}: chat_template in tokenizer_config.json is a list of something else than "
                "{'name': ..., 'template': ...}; correct it"
            ) from None


class StreamDecoder:
    """Shows a text while it grows: `push` an id, get the text that it has completed, "" while a character is open.

    All pushes and `flush` together give `decode` of all ids. (But for byte fallback on broken UTF-8, where decode takes
    back characters that were whole before.) The window that is decoded again starts at the last whole text before the
    new one, because many decoders treat a text's first token in a way of its own.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True):
        self.tokenizer = tokenizer
        self.skipped = frozenset(tokenizer.special) if skip_special_tokens else frozenset()
        self.window: list[int] = []
        self.mark = 0  # where the window will start once what it holds is whole
        self.said = 0  # how many characters of the window's text have been given

    def push(self, token: int) -> str:
        if int(token) in self.skipped:
            return ""
        self.window.append(int(token))
        text = self.tokenizer.decode(self.window, skip_special_tokens=False)
        whole = text.rstrip("\ufffd")  # a character's first bytes decode to this, and so may its next
        new = whole[self.said :]
        self.said += len(new)
        if whole == text and new:
            self.window, self.mark = self.window[self.mark :], len(self.window) - self.mark
            self.said = len(self.tokenizer.decode(self.window, skip_special_tokens=False))
        return new

    def flush(self) -> str:
        """What is left at the end: the "\ufffd" of a character that was cut."""
        rest = self.tokenizer.decode(self.window, skip_special_tokens=False)[self.said :]
        self.window, self.mark, self.said = [], 0, 0
        return rest


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
