# SPDX-License-Identifier: Apache-2.0
# Comments of our headers as Doxygen reads them: "// text" before a declaration becomes "/// text", behind one "///< text";
# the comment at the top of a file becomes that of the file. What is a command to Doxygen is escaped.
function plain(text) {
  gsub(/\\/, "\\\\\\\\", text)
  gsub(/[@#<>%&$]/, "\\\\&", text)
  return text
}
NR == 1 { print "/// \\file"; in_head = 1; next }
/^[ \t]*\/\/( |$)/ {
  match($0, /\/\//)
  print substr($0, 1, RSTART - 1) "///" plain(substr($0, RSTART + 2))
  next
}
in_head && !/^\/\// { in_head = 0; print "" }
/[;,{}] +\/\/ / && !/"[^"]*\/\/[^"]*"/ {
  match($0, / +\/\/ /)
  print substr($0, 1, RSTART - 1) "  ///< " plain(substr($0, RSTART + RLENGTH))
  next
}
{ print }
