// Package specs reads the JSON reports of ginkgo, the runner of the Kubernetes project's tests.
package specs

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// Summary is the result of a suite's run.
type Summary struct {
	Passed  int
	Failed  []Spec
	Skipped []Spec // specs that skipped themselves
	// Flaked are passed specs that needed another attempt.
	Flaked int
	Took   time.Duration
	// Broken says why the suite ended early, if it did.
	Broken []string
}

// Spec is one of a suite's tests, or one of its common steps.
type Spec struct {
	Name string
	// Message is the reason of a failure or a skip, in full.
	Message string
	// Place is the file and line of the failure or skip.
	Place string
}

// report is the part of ginkgo's JSON report that this package uses.
type report struct {
	RunTime                    time.Duration
	SpecialSuiteFailureReasons []string
	SpecReports                []specReport
}

type specReport struct {
	ContainerHierarchyTexts []string
	LeafNodeType            string
	LeafNodeText            string
	State                   string
	NumAttempts             int
	Failure                 struct {
		Message  string
		Location struct {
			FileName   string
			LineNumber int
		}
	}
}

// Read reads a report.
func Read(file string) (Summary, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return Summary{}, fmt.Errorf("read report: %w", err)
	}
	var reports []report
	if err := json.Unmarshal(text, &reports); err != nil {
		return Summary{}, fmt.Errorf("read report %s: %w", file, err)
	}
	var s Summary
	for _, r := range reports {
		s.Took += r.RunTime
		s.Broken = append(s.Broken, r.SpecialSuiteFailureReasons...)
		for _, spec := range r.SpecReports {
			s.add(spec)
		}
	}
	byName := func(a, b Spec) int { return strings.Compare(a.Name, b.Name) }
	slices.SortFunc(s.Failed, byName)
	slices.SortFunc(s.Skipped, byName)
	return s, nil
}

// add counts a spec. Other steps count only if they fail.
func (s *Summary) add(r specReport) {
	spec := Spec{
		Name:    strings.Join(append(slices.Clone(r.ContainerHierarchyTexts), r.LeafNodeText), " "),
		Message: strings.TrimSpace(r.Failure.Message),
	}
	if r.Failure.Location.FileName != "" {
		spec.Place = fmt.Sprintf("%s:%d", r.Failure.Location.FileName, r.Failure.Location.LineNumber)
	}
	if r.LeafNodeType != "It" {
		spec.Name = strings.TrimSpace(r.LeafNodeType + " " + spec.Name)
	}
	switch {
	case r.State == "skipped" || r.State == "pending":
		// A skipped spec without a message was not selected.
		if r.LeafNodeType == "It" && spec.Message != "" {
			s.Skipped = append(s.Skipped, spec)
		}
	case r.State != "passed":
		spec.Message = strings.TrimSpace(r.State + ": " + spec.Message)
		s.Failed = append(s.Failed, spec)
	case r.LeafNodeType == "It":
		s.Passed++
		if r.NumAttempts > 1 {
			s.Flaked++
		}
	}
}

// String returns a summary for people: the numbers and the failed specs.
func (s Summary) String() string {
	var b strings.Builder
	for _, spec := range s.Skipped {
		fmt.Fprintf(&b, "skipped: %s\n\t%s\n", spec.Name, firstLine(spec.Message))
	}
	for _, spec := range s.Failed {
		fmt.Fprintf(&b, "failed: %s\n\t%s\n\t%s\n", spec.Name, firstLine(spec.Message), spec.Place)
	}
	fmt.Fprintf(&b, "%d passed, %d failed, %d skipped in %s", s.Passed, len(s.Failed), len(s.Skipped), s.Took.Round(time.Second))
	if len(s.Broken) > 0 {
		fmt.Fprintf(&b, "; the suite ended early: %s", strings.Join(s.Broken, ", "))
	}
	return b.String()
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}
