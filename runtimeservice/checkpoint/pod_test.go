package checkpoint

import (
	"path/filepath"
	"strings"
	"testing"

	metadata "github.com/checkpoint-restore/checkpointctl/lib"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func TestReadPod(t *testing.T) {
	for says, text := range map[string]string{
		"":                   `{"version":1,"containers":{"a":"123","b":"456"}}`,
		"version 2":          `{"version":2,"containers":{"a":"123"}}`,
		"no containers":      `{"version":1}`,
		`archive "../x"`:     `{"version":1,"containers":{"a":"../x"}}`,
		`archive ".."`:       `{"version":1,"containers":{"a":".."}}`,
		`container ""`:       `{"version":1,"containers":{"":"123"}}`,
		"decode pod.options": `{`,
	} {
		dir := t.TempDir()
		writeFiles(t, dir, map[string]string{PodOptionsFile: text})
		got, err := ReadPod(dir)
		if says == "" {
			if diff := cmp.Diff(map[string]string{"a": "123.tar", "b": "456.tar"}, got); diff != "" || err != nil {
				t.Errorf("ReadPod = %v, %v", got, err)
			}
			continue
		}
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", says, err)
		}
	}
	if _, err := ReadPod(t.TempDir()); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "unfinished") {
		t.Errorf("an unfinished checkpoint: %v", err)
	}
	if _, err := ReadPod(filepath.Join(t.TempDir(), "none")); !errdefs.IsNotFound(err) {
		t.Errorf("no directory: %v", err)
	}
}

// TestPodAnnotations reads the options as checkpointctl does.
func TestPodAnnotations(t *testing.T) {
	dir := t.TempDir()
	options := PodOptions{Version: PodVersion, Containers: map[string]string{"a": "1"}, Annotations: PodAnnotations(PodFacts{Engine: "mica", Name: "p", Criu: "4.1"})}
	if _, err := metadata.WriteJSONFile(options, dir, PodOptionsFile); err != nil {
		t.Fatal(err)
	}
	got, _, err := metadata.ReadCheckpointPodOptions(dir)
	if err != nil || got.Annotations[metadata.CheckpointAnnotationEngine] != "mica" || got.Annotations[metadata.CheckpointAnnotationPod] != "p" {
		t.Errorf("read %+v, %v", got, err)
	}
}
