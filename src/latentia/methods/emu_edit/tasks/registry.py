"""The sixteen tasks by name.

The article names twelve families and counts sixteen tasks; the sheet's reading is eleven families and five kinds of
maps. That is the enumeration here, the direction of a translation being in the instruction. A task's number, the row
of its embedding, is its place in `TASKS`.
"""

from latentia.errors import check_choice
from latentia.methods.emu_edit.tasks.free_form import FREE_FORM_TASKS
from latentia.methods.emu_edit.tasks.region import REGION_TASKS
from latentia.methods.emu_edit.tasks.task import GROUPS, Task
from latentia.methods.emu_edit.tasks.translation import TRANSLATION_TASKS
from latentia.methods.emu_edit.tasks.vision import VISION_TASKS

TASKS: dict[str, Task] = {
    task.name: task for task in (*REGION_TASKS, *FREE_FORM_TASKS, *VISION_TASKS, *TRANSLATION_TASKS)
}
"""local, texture, add, remove, background · global, style, text · detect, segment, color, depth, segmap, normal,
sketch, pose."""

TASK_NAMES = tuple(TASKS)


def task_named(name: str) -> Task:
    """The task of a name; raises `UnknownChoiceError` with the nearest one."""
    check_choice("task", name, TASKS)
    return TASKS[name]


def task_number(name: str) -> int:
    """A task's place in `TASKS`, the row of its embedding."""
    check_choice("task", name, TASKS)
    return TASK_NAMES.index(name)


def tasks_of(group: str) -> tuple[str, ...]:
    """Names of the tasks of a group."""
    check_choice("group", group, GROUPS)
    return tuple(name for name, task in TASKS.items() if task.group == group)
