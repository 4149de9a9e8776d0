// Package archtest tests rules of docs/design.md for the whole module that no compiler checks.
// Packages import only what they may and have a doc comment. There is no init function and no
// mutable package-level state. Each RPC is in the file of its name. The executables that stay in
// memory beside every container link only the standard library and golang.org/x/sys. Comments,
// messages, names and documents contain no word that a reader has to read twice.
//
// It contains only tests. They use `go list` and go/parser on the source, so they also see files
// that a build on this machine excludes.
package archtest
