//go:build !race

package overlay

const raceDetector = false
