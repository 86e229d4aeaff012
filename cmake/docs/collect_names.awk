# SPDX-License-Identifier: Apache-2.0
#
# Writes the names of all public classes, enumerations, aliases and concepts to `names`, one a line.

FNR == 1 { skipped = 0 }
/^namespace (vmspace::)?detail/ { skipped = 1 }
/^}  \/\/ namespace/ || (/^}$/ && before ~ /^(class|struct)/) { skipped = 0 }
{ before = $0 }
!skipped && /^(class|struct|enum class|using|concept) / {
  sub(/^enum /, "")
  sub(/VMSPACE_EXPORT /, "")
  gsub(/\[\[[a-z]+\]\] /, "")
  if ($2 ~ /^[A-Z][A-Za-z0-9]*;?$/) {
    sub(/;$/, "", $2)
    print $2 > names
  }
}
