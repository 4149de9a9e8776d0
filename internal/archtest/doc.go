// Package archtest holds the tests of what docs/design.md says about the whole
// module and no compiler checks: which package may import which, that every
// package explains itself, that nothing happens or is kept at package level, that
// an RPC is in the file of its name, and that the executables which stay in memory
// beside every container link the standard library only.
//
// It has no code of its own. The tests look at the source as `go list` and go/parser
// show it, so they see files that a build on this machine leaves out, too.
package archtest
