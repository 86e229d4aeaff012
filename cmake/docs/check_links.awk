# SPDX-License-Identifier: Apache-2.0
#
# Fails when a page links to a file that is not there, or to a place that no page has. Run in the
# folder of the pages, with all of them: awk -f check_links.awk *.html

# The values of all attributes with these names on a line, each followed by a tab.
function values(line, names,    found) {
  while (match(line, "[ \"](" names ")=\"[^\"]*\"")) {
    value = substr(line, RSTART, RLENGTH - 1)
    line = substr(line, RSTART + RLENGTH - 1)
    sub(/^[^=]*="/, "", value)
    found = found value "\t"
  }
  return found
}

function exists(file,    line, found) {
  if (!(file in existing)) {
    existing[file] = (getline line < file) >= 0
    close(file)
  }
  return existing[file]
}

{
  count = split(values($0, "id|name"), part, "\t")
  for (i = 1; i < count; ++i) place[FILENAME "#" part[i]] = 1
  count = split(values($0, "href|src|data"), part, "\t")
  for (i = 1; i < count; ++i) {
    target = part[i]
    if (target ~ /^([a-z]+:|$)/) continue
    if (target ~ /^#/) target = FILENAME target
    if (!(target in from)) from[target] = FILENAME
  }
}

END {
  for (target in from) {
    file = target
    sub(/#.*/, "", file)
    if (!exists(file) || (target ~ /#./ && !(target in place))) {
      print from[target] ": dead link: " target
      ++dead
    }
  }
  exit dead > 0
}
