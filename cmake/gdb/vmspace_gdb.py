# SPDX-License-Identifier: Apache-2.0
#
# How gdb prints vmspace's types:
#
#   $1 = IntervalTree of 3 = {[0xc0000000-0xc0003fff] = "nic0", [0xc0004000-0xc0004fff] = allocated, ...}
#   $2 = [0xc0000000-0xc0003fff]                     a Range
#   $3 = 0xc0000000                                  a GuestAddress
#   $4 = IntervalTree::insert: overlap: [0x200, 0x2ff], [0x100, 0x20f]      an Error, a failed Result
#   $5 = no_space                                    an Errc
#
# A Result that holds a value prints as that value, a Result<void> as `ok`; `print /r` shows the
# members of all of them. Debug information (-g) is all that is needed.
#
# gdb loads this by itself for a program that uses the shared library, where that is installed below
# gdb's own prefix (/usr for a distribution's gdb). For a static or header-only build, or another
# prefix, say so once, on gdb's command line or in ~/.gdbinit:
#
#   source /usr/local/share/vmspace/vmspace_gdb.py
#
# Whatever is known of the layout of the types stands in the functions marked `layout`.

import os

import gdb
import gdb.printing


def hexadecimal(value):
    return hex(int(value) & (2**64 - 1))


def bounds(minimum, maximum):
    return "%s-%s" % (hexadecimal(minimum), hexadecimal(maximum))


def enumerator(value):
    """The name of an enumerator without its scope; the number where it has none."""
    return str(value).split("::")[-1]


def c_string(pointer):
    return "" if int(pointer) == 0 else pointer.string(errors="replace")


def entries(tree):
    """Layout of a tree: (min, max, state, value or None) of each entry, in address order.

    The leaves of the B+-tree are linked, so its inner nodes need not be known. A leaf has its bounds
    and values in arrays and its states in two words of bits. A value without state has no place.
    """
    value_type = tree.type.strip_typedefs().template_argument(0)
    leaf = tree["tree_"]["first_"]
    while int(leaf) != 0:
        node = leaf.dereference()
        free = int(node["free"]["word_"])
        valued = int(node["valued"]["word_"])
        for i in range(int(node["count"])):
            state, value = "allocated", None
            if free >> i & 1:
                state = "free"
            elif valued >> i & 1:
                state = "valued"
                slots = node["values"]
                if any(field.name == "bytes_" for field in slots.type.strip_typedefs().fields()):
                    bytes_of_all = slots["bytes_"]
                    first = bytes_of_all.address.cast(value_type.pointer())
                    value = (first + i).dereference()
            yield node["min"]["at"][i], node["max"][i], state, value
        leaf = node["next"]


def entry_count(tree):
    """Layout of a tree: how many entries it has."""
    return int(tree["tree_"]["size_"])


def operand_text(operand):
    """Layout of an Operand: as its message has it; "" when there is none."""
    kind = enumerator(operand["kind"])
    if kind == "none":
        return ""
    if kind == "number":
        return str(int(operand["first"]))
    if kind == "range":
        return "[%s, %s]" % (hexadecimal(operand["first"]), hexadecimal(operand["second"]))
    if kind == "span":
        return "%s + %s" % (hexadecimal(operand["first"]), hexadecimal(operand["second"]))
    return hexadecimal(operand["first"])


def names(text):
    """Layout of an ErrorText: its subject and its detail, "" for what is not there."""
    characters = [chr(int(text["text_"]["_M_elems"][i]) & 0xFF)
                  for i in range(int(text["subject_size_"]) + int(text["detail_size_"]))]
    subject = int(text["subject_size_"])
    return "".join(characters[:subject]), "".join(characters[subject:])


def error_text(error):
    """Layout of an Error: one line, in which its code stands for the words of message()."""
    subject, detail = names(error["text"])
    parts = [c_string(error["operation"]), '"%s"' % subject if subject else "", enumerator(error["code"])]
    operands = [text for text in map(operand_text, (error["first"], error["second"], error["available"])) if text]
    if operands:
        parts.append(", ".join(operands))
    text = ": ".join(part for part in parts if part)
    reasons = [part for part in (c_string(error["reason"]), '"%s"' % detail if detail else "") if part]
    if reasons:
        text += " (%s)" % ": ".join(reasons)
    number = int(error["os_errno"])
    if number != 0:
        text += ": " + os.strerror(number)
    return text


class RangePrinter:
    def __init__(self, value):
        self.value = value

    def to_string(self):
        return "[%s]" % bounds(self.value["min_"], self.value["max_"])


class GuestAddressPrinter:
    def __init__(self, value):
        self.value = value

    def to_string(self):
        return hexadecimal(self.value["value_"])


class ErrcPrinter:
    def __init__(self, value):
        self.value = value

    def to_string(self):
        # By the type's own list: printing the value would come here again.
        for field in self.value.type.strip_typedefs().fields():
            if field.enumval == int(self.value):
                return enumerator(field.name)
        return str(int(self.value))


class ErrorPrinter:
    def __init__(self, value):
        self.value = value

    def to_string(self):
        return error_text(self.value)


class ResultPrinter:
    """tl::expected<T, vmspace::Error>."""

    def __init__(self, value):
        self.value = value

    def to_string(self):
        if not self.value["m_has_val"]:
            return error_text(self.value["m_unexpect"]["m_val"])
        if self.value.type.strip_typedefs().template_argument(0).code == gdb.TYPE_CODE_VOID:
            return "ok"
        return self.value["m_val"]


class IntervalTreePrinter:
    def __init__(self, value):
        self.value = value

    def to_string(self):
        return "IntervalTree of %d" % entry_count(self.value)

    def children(self):
        for minimum, maximum, state, value in entries(self.value):
            key = bounds(minimum, maximum)
            yield key, key
            yield key, state if value is None else value

    def display_hint(self):
        return "map"


def make_printers():
    printers = gdb.printing.RegexpCollectionPrettyPrinter("vmspace")
    for name, pattern, printer in (
        ("Range", "^vmspace::Range$", RangePrinter),
        ("GuestAddress", "^vmspace::GuestAddress$", GuestAddressPrinter),
        ("Errc", "^vmspace::Errc$", ErrcPrinter),
        ("Error", "^vmspace::Error$", ErrorPrinter),
        ("Result", "^tl::expected<.*, vmspace::Error>$", ResultPrinter),
        ("IntervalTree", "^vmspace::IntervalTree<.*>$", IntervalTreePrinter),
    ):
        printers.add_printer(name, pattern, printer)
    return printers


# Twice in one gdb when it is both sourced and loaded for the library: the later one stays.
gdb.printing.register_pretty_printer(None, make_printers(), replace=True)
