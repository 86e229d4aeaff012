# SPDX-License-Identifier: Apache-2.0
#
# Links from what pages and headers say of classes and concepts to where they are documented. Doxygen
# finds names by itself inside of the namespace only, and never in `code`.
#
# The file `names` has one a line: the docs target collects them from the headers.

function read_names(    name) {
  while ((getline name < names) > 0) is_name[name] = 1
  close(names)
}

# A link to something documented. Doxygen takes the text of one as it is, so backticks become a tag.
function reference(text, target) {
  if (text !~ /^`[^`]*`$/) return "[" text "](@ref " target ")"
  gsub(/`/, "", text)
  gsub(/</, "\\<", text)
  return "<code>@ref " target " \"" text "\"</code>"
}

# `GuestMemory::read` leads to GuestMemory, whose page has all of its members.
function link_code(code,    name) {
  if (!match(code, /^(vmspace::)?[A-Z][A-Za-z0-9]*/)) return "`" code "`"
  name = substr(code, 1, RLENGTH)
  sub(/^vmspace::/, "", name)
  if (!(name in is_name)) return "`" code "`"
  return reference("`" code "`", "vmspace::" name)
}

# Words are looked up where names are written without backticks.
function link_words(text,    linked, word) {
  while (match(text, /[A-Za-z_][A-Za-z0-9_]*(::[A-Za-z_][A-Za-z0-9_]*)*/)) {
    word = substr(text, RSTART, RLENGTH)
    linked = linked substr(text, 1, RSTART - 1)
    text = substr(text, RSTART + RLENGTH)
    name = word
    sub(/::.*/, "", name)
    linked = linked (name in is_name ? "@ref vmspace::" name " \"" word "\"" : word)
  }
  return linked text
}

function link_names(line, words_too,    part, count, i, linked) {
  count = split(line, part, /`/)
  if (count % 2 == 0) return line # a span that ends on another line
  for (i = 1; i <= count; ++i) {
    # Not where it is the text of a link already.
    if (i % 2 == 0 && part[i - 1] ~ /\[$/) linked = linked "`" part[i] "`"
    else linked = linked (i % 2 == 0 ? link_code(part[i]) : words_too ? link_words(part[i]) : part[i])
  }
  return linked
}
