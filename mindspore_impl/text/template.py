"""The wording of the Pangu chat template: constants only. `chat.py` arranges them, `tokenizer.py` can encode them."""

TURN_START, TURN_END = "[unused9]", "[unused10]"
THINK_START, THINK_END = "[unused16]", "[unused17]"
SPECIAL_PIECES = (TURN_START, TURN_END, THINK_START, THINK_END)

ROLE_HEADERS = {"system": "系统：", "user": "用户：", "assistant": "助手：", "tool": "工具："}  # the colon is U+FF1A
SWITCHES = {"reasoning": "", "fast": " /no_think"}  # ends the last user turn; slow thinking is the model's default

# What a vocabulary must be able to spell; 方法 and /auto_think are words of the template that no record renders.
TEMPLATE_TEXTS = (*ROLE_HEADERS.values(), "方法：", " /no_think", " /auto_think")
