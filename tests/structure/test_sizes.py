"""Sizes that keep the code readable. They are habits with a limit, not a reason to split what belongs together."""

from __future__ import annotations

import ast

import pytest

from .repository import SIZED_TREES, Module, functions, modules

MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
PARAMETERS_MAX = 6


def lines_without_docstring(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end; promises in the docstring are free."""
    first = function.body[0]
    has_docstring = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    docstring_lines = (first.end_lineno or first.lineno) - first.lineno + 1 if has_docstring else 0
    return (function.end_lineno or function.lineno) - function.lineno + 1 - docstring_lines


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """All parameters but `self` and `cls`; `*args` and `**options` count as one each."""
    spec = function.args
    named = [argument.arg for argument in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)]
    gathered = [argument.arg for argument in (spec.vararg, spec.kwarg) if argument]
    return [name for name in (*named, *gathered) if name not in {"self", "cls"}]


@pytest.mark.parametrize("module", modules(*SIZED_TREES), ids=lambda module: module.name)
def test_module_keeps_its_sizes(module: Module) -> None:
    complaints = []
    lines = len(module.text.splitlines())
    if lines > MODULE_LINES_MAX:
        complaints.append(f"{lines} lines, at most {MODULE_LINES_MAX}")
    for function in functions(module):
        where = f"line {function.lineno} {function.name}"
        if lines_without_docstring(function) > FUNCTION_LINES_MAX:
            complaints.append(f"{where}: {lines_without_docstring(function)} lines, at most {FUNCTION_LINES_MAX}")
        if len(parameters(function)) > PARAMETERS_MAX:
            complaints.append(f"{where}: {len(parameters(function))} parameters, at most {PARAMETERS_MAX}")
    if complaints:
        pytest.fail(f"{module.name}: " + "; ".join(complaints), pytrace=False)
