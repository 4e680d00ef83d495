# SPDX-License-Identifier: Apache-2.0
"""Prints what transformers' apply_chat_template makes of the conversations in tests/runtime/chat_format_test.cpp.

The templates restate those of DeepSeek-V2-Chat, DeepSeek-V3 and DeepSeek-R1 for system, user and assistant messages.
Needs transformers and tokenizers: python3 tests/support/chat_expectations.py
"""

import json

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

V2 = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
V3 = (
    "{% set ns = namespace(system_prompt='', is_first_sp=true) %}"
    "{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{%- if ns.is_first_sp %}{% set ns.system_prompt = ns.system_prompt + message['content'] %}"
    "{% set ns.is_first_sp = false %}"
    "{%- else %}{% set ns.system_prompt = ns.system_prompt + '\n\n' + message['content'] %}{%- endif %}"
    "{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}{%- endif %}"
    "{%- if message['role'] == 'assistant' %}"
    "{{ '<｜Assistant｜>' + message['content'] + '<｜end▁of▁sentence｜>' }}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)
R1 = (
    V3.replace(
        "{%- if message['role'] == 'assistant' %}",
        "{%- if message['role'] == 'assistant' %}{% set content = message['content'] %}"
        "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}",
    )
    .replace("'<｜Assistant｜>' + message['content']", "'<｜Assistant｜>' + content")
    .replace("{{ '<｜Assistant｜>' }}", "{{ '<｜Assistant｜><think>\\n' }}")
)

CASES = {
    "one turn": [("user", "Hi"), ("assistant", "Hello!")],
    "a question": [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!"), ("user", "2+2?")],
    "thoughts": [
        ("system", "A"),
        ("system", "B"),
        ("user", "2+2?"),
        ("assistant", "<think>\nhm\n</think>\n\nfour"),
        ("user", "3+3?"),
        ("assistant", "six"),
    ],
}


def main():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()),
        bos_token="<｜begin▁of▁sentence｜>",
        eos_token="<｜end▁of▁sentence｜>",
    )
    for name, template in {"deepseek_v2": V2, "deepseek_v3": V3, "deepseek_r1": R1}.items():
        for case, messages in CASES.items():
            for generation in (False, True):
                text = tokenizer.apply_chat_template(
                    [{"role": role, "content": content} for role, content in messages],
                    chat_template=template,
                    tokenize=False,
                    add_generation_prompt=generation,
                )
                print(name, case, "prompt" if generation else "whole", json.dumps(text, ensure_ascii=False), sep=" | ")


if __name__ == "__main__":
    main()
