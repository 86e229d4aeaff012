# SPDX-License-Identifier: Apache-2.0
#
# A page of Markdown as doxygen is to read it: links that lead to files in the sources lead to what is
# made of them here, and a block that is a part of a program says of which. Line numbers stay as they
# are. Run with names.awk; `root` is the top folder of the sources.

# The page that is made of a file; a name of its own for each, which its address has too.
function page_of(path) {
  if (path == "README.md") return "index"
  if (path == "include/vmspace/README.md") return "architecture"
  if (match(path, /^include\/vmspace\/[a-z_]+\/README.md$/)) return "layer_" folder_of(path)
  if (match(path, /^examples\/[a-z_]+\/README.md$/)) return "example_" folder_of(path)
  if (path == "bench/report/README.md") return "report"
  sub(/.*\//, "", path)
  sub(/\.md$/, "", path)
  return tolower(path)
}
function folder_of(path,    part) { return part[split(path, part, "/") - 1] }

# Doxygen's address of the page that shows a whole program.
function program_page(path) {
  gsub(/\//, "_2", path)
  gsub(/\./, "_8", path)
  return path "-example.html"
}

function exists(path) {
  if (!(path in existing)) existing[path] = system("test -e '" root "/" path "'") == 0
  return existing[path]
}

# A heading, with the name that a link on this page gives it (`#a-bar-moves`) behind the page's.
function heading(line,    slug) {
  slug = tolower(line)
  sub(/^#+ +/, "", slug)
  gsub(/[^a-z0-9 -]/, "", slug)
  gsub(/ /, "-", slug)
  return line " {#" page "_" slug "}"
}

# From the folder of this page to a path from the top.
function resolve(target,    path) {
  path = folder target
  while (sub(/[^\/]+\/\.\.\//, "", path)) {}
  return path
}

function link(text, target,    path) {
  if (target ~ /^#/) return reference(text, page "_" substr(target, 2))
  if (target ~ /^(https?:|@ref)/) return "[" text "](" target ")"
  path = resolve(target)
  if (!exists(path)) return "<a href=\"" path "\">" text "</a>" # nothing there: check_links.awk will say so
  if (path ~ /\.svg$/) return "[" text "](" path ")"
  if (path ~ /^examples\/[a-z_]+$/) {
    if (exists(path "/README.md")) path = path "/README.md"
    else if (exists(path "/main.cpp")) path = path "/main.cpp"
  }
  if (path ~ /\.md$/) {
    # What the architecture's table lists stands below it in the tree, and a format below its layer.
    if ((page == "architecture" && path ~ /README/) || path ~ /FORMAT/) {
      gsub(/`/, "", text)
      return "@subpage " page_of(path) " \"" text "\""
    }
    return reference(text, page_of(path))
  }
  if (path ~ /^include\//) return reference(text, substr(path, 9))
  if (path ~ /^examples\/.*\.[ch]pp$/) return "[" text "](" program_page(path) ")"
  return text # of a file that has no page, such as a test
}

function links(line,    done, text, target) {
  while (match(line, /\[[^][]*\]\([^()]*\)/)) {
    text = substr(line, RSTART + 1, RLENGTH - 2)
    target = text
    sub(/\]\(.*/, "", text)
    sub(/.*\]\(/, "", target)
    done = done substr(line, 1, RSTART - 1)
    line = substr(line, RSTART + RLENGTH)
    done = done link(text, target)
  }
  return done line
}

FNR == 1 {
  read_names()
  folder = substr(FILENAME, length(root) + 2)
  page = page_of(folder)
  sub(/[^\/]*$/, "", folder)
  if (page != "index") $0 = $0 " {#" page "}"
}
/^```/ { in_block = !in_block }
/^##/ && !in_block {
  print heading($0)
  next
}
/^<!-- examples\/.*\.txt -->$/ {
  print "<span class=\"source\">Its output:</span>"
  next
}
/^<!-- examples\/.* -->$/ {
  print "<span class=\"source\">From <a href=\"" program_page($2) "\">" $2 "</a>:</span>"
  next
}
{ print in_block || /^```|^#/ ? $0 : links(link_names($0)) }
