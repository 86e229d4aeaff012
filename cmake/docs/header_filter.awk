# SPDX-License-Identifier: Apache-2.0
#
# A header as doxygen is to read it. Line numbers stay as they are, so that warnings point at the
# header.
#
# Run with names.awk. The first comment becomes the description of the file, in Markdown. Lines of it that are indented by
# three spaces or more, after an empty one, are a block of code or a table. A paragraph that says why
# the file is longer than others is left out.
#
# `// -- allocating ---` in a class begins a group of its members, up to the next or to what is
# private, which is left out.
#
# Defaulted members are documented as what the language makes of them, and the operators of iterators
# as what all iterators do. Names that are there for the
# standard library or for fmt alone (traits of iterators, specialisations) are left out.

# The block of lines that begins with this one: sets block_end, and says what is in it. An empty line
# belongs to the block if the next one is indented again.
function block_language(first,    i, language) {
  language = "{.unparsed}"
  for (i = first; lines[i] ~ /^\/\/   / || (lines[i] == "//" && lines[i + 1] ~ /^\/\/   /); ++i) {
    if (lines[i] ~ /[;{}]$|;  *\/\/|^\/\/ +\/\//) language = "{.cpp}"
  }
  block_end = i - 1
  return language
}

function first_comment(    i, end, skipping) {
  for (end = 1; lines[end + 1] ~ /^\/\//; ++end) {}
  lines[2] = "/// @file"
  for (i = 3; i <= end; ++i) {
    if (lines[i] ~ /^\/\/ Longer than/) skipping = 1
    if (lines[i] == "//" && lines[i + 1] ~ /^\/\/   / && lines[i + 1] !~ /^\/\/ +(-|[0-9]+\.) /) {
      lines[i] = "/// ~~~" block_language(i + 1)
      while (++i <= block_end) lines[i] = "///" substr(lines[i], 5)
      lines[i] = "/// ~~~"
    } else if (skipping) {
      skipping = lines[i] != "//"
      lines[i] = ""
    } else {
      lines[i] = "///" link_names(substr(lines[i], 3), 1)
    }
  }
}

function is_documented(i) { return lines[i - 1] ~ /^ *\/\/\// || lines[i] ~ /\/\/\/</ }

# What `= default` means.
function defaulted(line) {
  if (line ~ /operator==/) return "Equal when all members are."
  if (line ~ /operator<=>/) return "Ordered as the numbers are."
  if (line ~ /&&[^,]*\)/) return "Moves all members."
  if (line ~ /const [^,]*&[^,]*\)/) return "Copies all members."
  return ""
}

# What the operators of an iterator do.
function is_step(line) { return line ~ / operator(\*|\+\+|--)\((int)?\) / }
function step(line) {
  if (line ~ /\(int\)/) return "Steps as the other form does; gives what it was before."
  if (line ~ /\+\+/) return "Steps to the next one."
  if (line ~ /--/) return "Steps to the one before."
  return "What it is at; it must not be the end."
}

# A comment below the title is the group's description.
function begin_group(i,    title) {
  title = lines[i]
  gsub(/^  \/\/ -- | -+$/, "", title)
  lines[i] = (group_is_open ? "/** @} */ " : "") "/** @name " toupper(substr(title, 1, 1)) substr(title, 2)
  while (lines[++i] ~ /^  \/\//) sub(/^  \/\//, "", lines[i])
  lines[i] = "*/ /** @{ */"
  group_is_open = 1
}

# Blanks the lines behind this one as long as they are private, and gives the next: doxygen would
# announce hidden classes.
function remove_private(i, indent) {
  while (index(lines[++i], substr(indent, 2) "};") != 1 && lines[i] !~ "^" indent "(public|protected):$") {
    lines[i] = ""
  }
  return i
}

# Blanks a declaration, from the `template` line and the comment before it to its end.
function remove(i,    first) {
  for (first = i - 1; lines[first] ~ /^(template|\/\/)/; --first) lines[first] = ""
  while (i < NR && lines[i] !~ /^[^ ].*;$|{};$/) lines[i++] = ""
  lines[i] = ""
}

{ lines[NR] = $0 }

# In the comment of a declaration such a block is indented further, which makes it one in Markdown.
function indent_blocks(    i, indent, inside) {
  for (i = 2; i <= NR; ++i) {
    indent = substr(lines[i], 1, index(lines[i], "///") - 1)
    if (lines[i] !~ /^ *\/\/\/   [^ -]/ && !(inside && lines[i] ~ /^ *\/\/\/   /)) inside = 0
    else if (lines[i - 1] ~ /^ *\/\/\/$/) inside = 1
    if (inside) sub(/\/\/\/ /, "///     ", lines[i])
  }
}

END {
  read_names()
  indent_blocks()
  first_comment()
  for (i = 1; i <= NR; ++i) {
    if (lines[i] ~ /^(struct|class|inline constexpr bool) (std|fmt)::/) {
      remove(i)
    } else if (lines[i] ~ /^ +using (iterator_(category|concept)|value_type|difference_type|pointer|reference|(const_)?iterator) = .*;$/) {
      if (!is_documented(i)) lines[i] = ""
    } else if (lines[i] ~ /^  \/\/ -- /) {
      begin_group(i)
    } else if (lines[i] ~ /^ +private:$/) {
      indent = substr(lines[i], 1, index(lines[i], "private") - 1)
      lines[i] = group_is_open && indent == " " ? "/** @} */" : ""
      if (indent == " ") group_is_open = 0
      i = remove_private(i, indent) - 1
    } else if (lines[i] ~ /^class .*[^;]$/) {
      while (lines[i] !~ /{$/) ++i
      i = remove_private(i, " ") - 1
    } else if (lines[i] ~ /^ +friend (class |struct )?[A-Za-z:<>]+;$/) {
      lines[i] = ""
      if (lines[i - 1] ~ /^ +template/) lines[i - 1] = ""
    } else if (lines[i] ~ /^#define VMSPACE_DETAIL/) {
      while (lines[i] ~ /\\$/) lines[i++] = ""
      lines[i] = ""
    } else if (is_step(lines[i]) && !is_documented(i)) {
      lines[i] = "/** " step(lines[i]) " */" lines[i]
    } else if (lines[i] ~ /= default;$/ && !is_documented(i) && defaulted(lines[i]) != "") {
      lines[i] = lines[i] "  ///< " defaulted(lines[i])
    }
  }
  for (i = 1; i <= NR; ++i) print lines[i]
}
