//go:build race

package overlay

// raceDetector reports whether the tests run with the race detector, which takes many times as
// long.
const raceDetector = true
