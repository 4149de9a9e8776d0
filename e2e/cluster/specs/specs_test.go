package specs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// reportText has a spec for each possible result.
const reportText = `[{
	"RunTime": 90000000000,
	"SpecialSuiteFailureReasons": ["Interrupted by User"],
	"SpecReports": [
		{"LeafNodeType": "BeforeSuite", "State": "passed"},
		{"ContainerHierarchyTexts": ["Pods", "with probes"], "LeafNodeType": "It", "LeafNodeText": "restart", "State": "passed", "NumAttempts": 1},
		{"ContainerHierarchyTexts": ["Pods"], "LeafNodeType": "It", "LeafNodeText": "start late", "State": "passed", "NumAttempts": 2},
		{"ContainerHierarchyTexts": null, "LeafNodeType": "It", "LeafNodeText": "not in focus", "State": "skipped"},
		{"ContainerHierarchyTexts": ["Zoo"], "LeafNodeType": "It", "LeafNodeText": "needs a zebra", "State": "skipped",
			"Failure": {"Message": "no zebra here\nnor elsewhere", "Location": {"FileName": "zoo.go", "LineNumber": 3}}},
		{"ContainerHierarchyTexts": ["Zoo"], "LeafNodeType": "It", "LeafNodeText": "opens", "State": "failed",
			"Failure": {"Message": "closed\nin full", "Location": {"FileName": "zoo.go", "LineNumber": 7}}},
		{"ContainerHierarchyTexts": ["Ape"], "LeafNodeType": "It", "LeafNodeText": "climbs", "State": "interrupted"},
		{"LeafNodeType": "AfterSuite", "State": "panicked", "Failure": {"Message": "oh"}}
	]
}]`

func TestRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "report.json")
	if err := os.WriteFile(file, []byte(reportText), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := Read(file)
	if err != nil {
		t.Fatal(err)
	}
	if got.Passed != 2 || got.Flaked != 1 || got.Took != 90*time.Second || !slices.Equal(got.Broken, []string{"Interrupted by User"}) {
		t.Errorf("summary: %+v", got)
	}
	if want := []Spec{{Name: "Zoo needs a zebra", Message: "no zebra here\nnor elsewhere", Place: "zoo.go:3"}}; !slices.Equal(got.Skipped, want) {
		t.Errorf("skipped: %+v", got.Skipped)
	}
	want := []Spec{
		{Name: "AfterSuite", Message: "panicked: oh"},
		{Name: "Ape climbs", Message: "interrupted:"},
		{Name: "Zoo opens", Message: "failed: closed\nin full", Place: "zoo.go:7"},
	}
	if !slices.Equal(got.Failed, want) {
		t.Errorf("failed: %+v", got.Failed)
	}
	text := got.String()
	for _, line := range []string{
		"skipped: Zoo needs a zebra\n\tno zebra here\n", "failed: Zoo opens\n\tfailed: closed\n\tzoo.go:7\n",
		"2 passed, 3 failed, 1 skipped in 1m30s; the suite ended early: Interrupted by User",
	} {
		if !strings.Contains(text, line) {
			t.Errorf("no %q in %q", line, text)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "report.json")
	if _, err := Read(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no report: %v", err)
	}
	if err := os.WriteFile(file, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(file); err == nil {
		t.Error("Read accepts a truncated report")
	}
}
