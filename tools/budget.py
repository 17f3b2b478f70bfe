"""CPU seconds, what they may be, and the table of the slowest. The clock is nowhere asked: a busy machine fails nothing.

A page or a book over its budget is a warning; where GENTOK_STRICT_BUDGETS is 1, as .ci/run sets it, it is refused.
"""
import os, resource
from contextlib import contextmanager

page_seconds = float(os.environ.get('GENTOK_PAGE_SECONDS', 30)) # the aim is 20; half again, since processors differ
book_seconds = float(os.environ.get('GENTOK_BOOK_SECONDS', 600)) # it takes 360

def strict() -> bool:
    "Whether what is over its budget is refused."
    return os.environ.get('GENTOK_STRICT_BUDGETS', '') not in ('', '0')

def cpu_seconds() -> float:
    "User and system seconds of this process and of every process that it has waited for."
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))

@contextmanager
def measured(spent:dict, name:str):
    "Notes the CPU seconds of its block under the name."
    start = cpu_seconds()
    try: yield
    finally: spent[name] = cpu_seconds() - start

def table(spent:dict, what:str, n:int=10) -> str:
    "The `n` slowest with their CPU seconds, and the sum of all."
    slowest = sorted(spent, key=spent.get, reverse=True)[:n]
    head = f'slowest {what} in CPU seconds, {len(slowest)} of {len(spent)}'
    return '\n'.join([head, *(f'{spent[name]:7.1f}  {name}' for name in slowest), f'{sum(spent.values()):7.1f}  all'])

def over_budget(spent:dict) -> list:
    "Pages over their CPU budget and the book over its own, one sentence each."
    out = [f'{name}: {s:.0f} CPU seconds, more than {page_seconds:.0f}; make it smaller, or mark its long cells `#| slow`.'
           for name, s in spent.items() if s > page_seconds]
    total = sum(spent.values())
    if total > book_seconds:
        out.append(f'The book: {total:.0f} CPU seconds, more than {book_seconds:.0f}; make its slowest pages smaller.')
    return out
