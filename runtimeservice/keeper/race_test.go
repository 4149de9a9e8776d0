//go:build race

package keeper

// With -race, the keeper under test is built with the race detector too.
const raceFlag, cgo = "-race", "CGO_ENABLED=1"
