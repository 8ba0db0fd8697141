"""Chat templates: data that `chat.py` renders and `tokenizer.py` encodes; `register_template` adds one."""

from dataclasses import dataclass, field, replace

from mindspore_impl.errors import UserError
from mindspore_impl.schema import nearest
from mindspore_impl.text.records import ROLES, THINKING


@dataclass(frozen=True)
class Template:
    """How one family of models writes a conversation. A piece is one token, inserted by its id; the rest is text.

    Raises UserError for a template that lacks the header of a role, a switch, or one of two thinking pieces.
    """

    name: str
    turn_start: str  # piece before each turn
    turn_end: str  # piece after each turn; generation stops at it
    headers: dict[str, str]  # role: text between turn_start and the content
    bos: str | None = None  # piece that stands once, at the start of a sequence
    think_start: str | None = None  # pieces around an assistant's reasoning; None: it is plain text before the answer
    think_end: str | None = None
    separator: str = ""  # text between two turns
    default_system: str | None = None  # content of the system turn put before a conversation that has none
    forgets_reasoning: bool = False  # assistant turns before the last user turn are shown without reasoning and span
    # What ends each user turn; the thinking modes of a model without switches are told apart by the text alone.
    switches: dict[str, str] = field(default_factory=lambda: dict.fromkeys(THINKING, ""))

    def __post_init__(self):
        absent = [f"headers[{role!r}]" for role in ROLES if role not in self.headers]
        absent += [f"switches[{mode!r}]" for mode in THINKING if mode not in self.switches]
        absent += [key for key in ("name", "turn_start", "turn_end") if not getattr(self, key)]
        if (self.think_start is None) != (self.think_end is None):
            absent.append("think_start" if self.think_start is None else "think_end")
        if absent:
            raise UserError(f"chat template {self.name!r}: {', '.join(absent)} is missing")

    @property
    def pieces(self) -> tuple[str, ...]:
        """The pieces that every vocabulary of this family has, without BOS."""
        named = (self.turn_start, self.turn_end, self.think_start, self.think_end)
        return tuple(piece for piece in named if piece is not None)

    @property
    def thinks(self) -> bool:
        """Whether reasoning stands in a span of its own."""
        return self.think_start is not None


PANGU = Template(
    name="pangu",
    bos="<s>",
    turn_start="[unused9]",
    turn_end="[unused10]",
    think_start="[unused16]",
    think_end="[unused17]",
    headers={"system": "系统：", "user": "用户：", "assistant": "助手：", "tool": "工具："},  # the colon is U+FF1A
    default_system="",
    switches={"reasoning": "", "fast": " /no_think"},  # slow thinking is the model's default
)
CHATML = Template(
    name="chatml",
    turn_start="<|im_start|>",
    turn_end="<|im_end|>",
    headers={role: f"{role}\n" for role in ROLES},
    separator="\n",
)
SMOLLM2 = replace(
    CHATML, name="smollm2", default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face"
)
TEMPLATES: dict[str, Template] = {}
REASONING_END = "\n"  # between reasoning and answer where there is no span

# What a vocabulary trained here has and must be able to spell; no record renders 方法 and /auto_think.
SPECIAL_PIECES = PANGU.pieces
TEMPLATE_TEXTS = (*PANGU.headers.values(), "方法：", " /no_think", " /auto_think")


def register_template(template: Template) -> Template:
    """Make a `template` available as `tokenizer.template=NAME`; return it. Raises UserError when the name is taken."""
    if TEMPLATES.setdefault(template.name, template) != template:
        raise UserError(f"chat template {template.name!r}: another template has this name; choose a new one")
    return template


def find_template(name: str) -> Template:
    """The registered template `name`. Raises UserError with the nearest name."""
    if name not in TEMPLATES:
        raise UserError(f"tokenizer.template: no template is named {name!r}{nearest(name, TEMPLATES)}")
    return TEMPLATES[name]


for _template in (PANGU, CHATML, SMOLLM2):
    register_template(_template)
