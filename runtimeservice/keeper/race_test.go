//go:build race

package keeper

// The keeper under test looks for races when the tests do.
const raceFlag, cgo = "-race", "CGO_ENABLED=1"
