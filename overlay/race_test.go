//go:build race

package overlay

// raceDetector says that the tests look for races, which takes many times as long.
const raceDetector = true
