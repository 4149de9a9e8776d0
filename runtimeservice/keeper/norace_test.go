//go:build !race

package keeper

const raceFlag, cgo = "-race=false", "CGO_ENABLED=0"
