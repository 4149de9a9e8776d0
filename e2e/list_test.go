package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/e2e/node"
)

// A list that is larger than a message is rejected with an error that names the streaming call. The
// streaming call returns every container once.
func TestStreamingLists(t *testing.T) {
	f := start(t)
	p := f.runPod(f.podConfig())
	id := f.start(p, f.containerConfig(busyboxImage, "true"))
	f.await(id)
	f.no(f.StopDaemon())
	const count, size = 150, 256 << 10 // 37.5 MiB
	want := map[string]bool{id: true}
	for n := range count {
		want[f.cloneRecord(id, n, strings.Repeat("x", size))] = true
	}
	took, err := f.StartDaemon(f.ctx)
	f.no(err)
	t.Logf("ready with %d containers after %s", len(want), took)

	_, err = f.Runtime.ListContainers(f.ctx, nil)
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "use StreamContainers") {
		t.Errorf("a list of 37 MiB: %v, want ResourceExhausted that names the streaming call", err)
	}
	streaming, err := node.DialStreaming(f.ctx, f.Socket())
	f.no(err)
	defer func() { _ = streaming.Close(f.ctx) }()
	for name, filter := range map[string]*runtimeapi.ContainerFilter{"all": nil, "by pod": {PodSandboxId: p.id}} {
		list, err := streaming.ListContainers(f.ctx, filter)
		f.no(err)
		seen := map[string]bool{}
		for _, c := range list {
			if !want[c.Id] || seen[c.Id] {
				t.Errorf("%s: container %s is unknown or a duplicate", name, c.Id)
			}
			seen[c.Id] = true
		}
		if len(seen) != len(want) {
			t.Errorf("%s: got %d containers, want %d", name, len(seen), len(want))
		}
	}
	pods, err := streaming.ListPodSandbox(f.ctx, nil)
	f.no(err)
	if len(pods) != 1 || pods[0].Id != p.id {
		t.Errorf("streamed pods are %v", pods)
	}
}

// cloneRecord copies the record of a container under a new ID, which it returns. No daemon may run.
func (f *fixture) cloneRecord(id string, number int, label string) string {
	f.t.Helper()
	clone := fmt.Sprintf("%064x", number+1)
	from, to := filepath.Join(f.Data, "cri", "containers", id), filepath.Join(f.Data, "cri", "containers", clone)
	f.no(os.Mkdir(to, 0o700))
	var record map[string]any
	data, err := os.ReadFile(filepath.Join(from, "record.json"))
	f.no(err)
	f.no(json.Unmarshal(data, &record))
	record["ID"] = clone
	config := record["Config"].(map[string]any)
	config["metadata"] = map[string]any{"name": clone}
	config["labels"] = map[string]any{"large": label}
	data, err = json.Marshal(record)
	f.no(err)
	f.no(os.WriteFile(filepath.Join(to, "record.json"), data, 0o600))
	state, err := os.ReadFile(filepath.Join(from, "state.json"))
	f.no(err)
	state = bytes.Replace(state, []byte(`"Untold":true`), []byte(`"Untold":false`), 1)
	f.no(os.WriteFile(filepath.Join(to, "state.json"), state, 0o600))
	return clone
}
