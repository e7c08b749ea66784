"""Writes `lm-chat/cases.json`: chat templates in the styles of well-known models, and what transformers makes of them.

Usage: make_chats.py
"""

import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jinja2
from transformers import PreTrainedTokenizerFast

DATA = Path(__file__).resolve().parents[2] / "crates/model-loader/tests/data"

# Turns between header tokens, a date, tools as JSON in the first turn of the user.
HEADERS = """\
{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start|>system<|end_header|>\\n\\n" }}
{%- if strftime_now is defined %}
    {%- set date_string = date_string or "no day" %}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot|>" }}
{%- if tools is not none %}
    {%- set first_user_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
    {{- "<|start|>user<|end_header|>\\n\\nAnswer with JSON for a function call.\\n\\n" -}}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
    {{- first_user_message + "<|eot|>"}}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start|>' + message['role'] + '<|end_header|>\\n\\n'+ message['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("One call at a time!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start|>assistant<|end_header|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}<|eot|>" }}
    {%- else %}
        {{- "<|start|>tool<|end_header|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end_header|>\\n\\n' }}
{%- endif %}
"""

# Instructions in brackets, roles that must take turns, a namespace.
BRACKETS = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("After the optional system message, roles must alternate user/assistant") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}
                    {{- ", " }}
                {%- else %}
                    {{- "]" }}
                {%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- endif %}
{%- endfor %}
"""

# One line of tags after another, thinking that is left out of older turns, tool answers gathered into one turn.
CHATML = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning_content)) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

# Lines of their own without dashes (trim_blocks and lstrip_blocks), a macro, break and continue, the generation tag,
# numbers and truth as Python prints them.
BLOCKS = """\
{% macro turn(role, text) %}
<{{ role }}>{{ text }}</{{ role }}>
{% endmacro %}
{% for message in messages %}
    {% if message.role == 'skip' %}
        {% continue %}
    {% endif %}
    {% if message.role == 'end' %}
        {% break %}
    {% endif %}
    {% if message.role == 'assistant' %}
        {% generation %}
{{ turn('a', message.content | trim) }}
        {% endgeneration %}
    {% else %}
{{ turn('u', message.content) }}
    {% endif %}
{% endfor %}
{{ messages | length }} {{ true }} {{ none }} {{ 1.5 }} {{ ['a', 1, false] }} {{ {'k': 'v'} }}
{{ messages[0].content.upper().replace('S', 'z') }} {{ messages[0].content[:5] }} {{ messages | map(attribute='role') | join(', ') }}
{{ {'b': [1, {'c': none}], 'a': 'é<&>\\n'} | tojson }} {{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}
{{ 'é🚢' | tojson(ensure_ascii=true) }} {{ [] | tojson(indent=2) }} {{ [1, [2]] | tojson(indent=2) }} {{ 1e-5 | tojson }} {{ 2.0 | tojson }}
"""

USER = {"role": "user", "content": " Ships wait, it's the \"Suez\"\n"}
SYSTEM = {"role": "system", "content": " Be brief. "}
ASSISTANT = {"role": "assistant", "content": "<think>\nThe wind.\n</think>\n\nThey wait for the wind."}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a town: <hot> & cold, \"quoted\", é",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string"}, "days": {"type": "number", "default": 1.5, "nullable": True}},
            "required": ["town"],
        },
        "return": {"type": "string"},
    },
}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"town": "Zürich", "days": 2}}}],
}
ANSWER = {"role": "tool", "content": {"sky": "grey", "degrees": 11.5}}
TOLD = {"role": "tool", "content": "grey"}

CASES = [
    ("headers", HEADERS, [USER], {}),
    ("headers, system", HEADERS, [SYSTEM, USER, ASSISTANT, USER], {"add_generation_prompt": False}),
    ("headers, tools", HEADERS, [SYSTEM, USER, CALL, ANSWER], {"tools": [WEATHER]}),
    ("headers, date", HEADERS, [USER], {"date_string": "26 Jul 2024"}),
    ("headers, two calls", HEADERS, [USER, {**CALL, "tool_calls": CALL["tool_calls"] * 2}], {}),
    ("brackets", BRACKETS, [SYSTEM, USER, ASSISTANT, USER], {}),
    ("brackets, tools", BRACKETS, [USER], {"tools": [WEATHER, WEATHER]}),
    ("brackets, out of turn", BRACKETS, [USER, USER], {}),
    ("chatml", CHATML, [SYSTEM, USER, ASSISTANT, USER], {}),
    ("chatml, thinking", CHATML, [USER, ASSISTANT], {"add_generation_prompt": False}),
    ("chatml, no thinking", CHATML, [USER], {"enable_thinking": False}),
    ("chatml, tools", CHATML, [SYSTEM, USER, CALL, TOLD, TOLD], {"tools": [WEATHER]}),
    ("blocks", BLOCKS, [USER, {"role": "skip", "content": "x"}, ASSISTANT, {"role": "end", "content": "y"}, USER], {}),
]


def main() -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(DATA / "lm-tokenizer")
    cases = []
    for name, template, messages, options in CASES:
        arguments = {"add_generation_prompt": True, **options}
        case = {"name": name, "template": template, "messages": messages, "options": arguments}
        try:
            case["expected"] = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **arguments)
        except jinja2.TemplateError as error:
            case["error"] = str(error)
        cases.append(case)
    folder = DATA / "lm-chat"
    folder.mkdir(exist_ok=True)
    (folder / "cases.json").write_text(json.dumps(cases, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    for case in cases:
        print(f"--- {case['name']}\n{case.get('expected', case.get('error'))}")


if __name__ == "__main__":
    main()
