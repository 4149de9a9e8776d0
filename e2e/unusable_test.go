package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// garble replaces JSON files with text that no decoder accepts.
func garble(paths ...func(f *fixture, v victim) string) func(*fixture, victim) error {
	return func(f *fixture, v victim) error {
		for _, path := range paths {
			if err := os.WriteFile(path(f, v), []byte(`{"`), 0o600); err != nil {
				return err
			}
		}
		return nil
	}
}

func bundleSpec(f *fixture, v victim) string {
	return filepath.Join(f.State, "containers", v.container, "config.json")
}

// unusableCase is a pod with one container. Some of their records cannot be read.
type unusableCase struct {
	name           string
	config         func(*runtimeapi.PodSandboxConfig)
	damage         func(f *fixture, v victim) error
	pod, container bool // objects with damaged records
	byContainer    bool // remove the container by its ID first
}

func unusableCases() []unusableCase {
	pod, container := podRecord("record.json"), containerRecord("record.json")
	return []unusableCase{
		{name: "container removed by its ID", damage: garble(container), container: true, byContainer: true},
		{name: "container removed with its pod", damage: garble(container), container: true},
		{name: "container of a shared PID namespace", config: sharePIDs, damage: garble(container), container: true},
		{name: "container and its specification", damage: garble(container, containerRecord("config.json")), container: true},
		{name: "container, its specification and its bundle", damage: garble(container, containerRecord("config.json"), bundleSpec), container: true},
		{name: "pod", damage: garble(pod), pod: true},
		{name: "pod, container removed by its ID", damage: garble(pod), pod: true, byContainer: true},
		{name: "pod and container", damage: garble(pod, container), pod: true, container: true},
		{name: "pod, container and all specifications", damage: garble(pod, container, containerRecord("config.json"), bundleSpec), pod: true, container: true},
	}
}

// A pod or container with an unreadable record is shown by its ID, and is removed with all its
// resources, as crictl does it. The lists omit it.
func TestRemoveUnusableRecords(t *testing.T) {
	f := start(t)
	list := unusableCases()
	victims := make([]victim, len(list))
	for i, c := range list {
		victims[i] = f.victim(c.config)
	}
	whole := f.victim(nil)
	f.no(f.Kill())
	for i, c := range list {
		f.no(c.damage(f, victims[i]))
	}
	_, err := f.StartDaemon(f.ctx)
	f.no(err)
	// Layers of removed images remain for the containers, and must be removed with them.
	f.no(f.RemoveImages(f.ctx))
	for i, c := range list {
		t.Run(c.name, func(t *testing.T) { f.removeUnusable(t, c, victims[i]) })
	}
	f.checkUntouched(whole)
	if count, err := f.Metric(f.ctx, "mica_unusable_records"); err != nil || count != 0 {
		t.Errorf("mica_unusable_records is %v after the removals, %v", count, err)
	}
}

// removeUnusable removes the case's pod and container like crictl, which requests the status first.
func (f *fixture) removeUnusable(t *testing.T, c unusableCase, v victim) {
	layer := writableLayer(f, v)
	containers, err := f.Runtime.ListContainers(f.ctx, &runtimeapi.ContainerFilter{Id: v.container})
	if err != nil || len(containers) != 0 {
		t.Errorf("list of containers: %v, %v", containers, err)
	}
	pods, err := f.Runtime.ListPodSandbox(f.ctx, &runtimeapi.PodSandboxFilter{Id: v.id})
	if err != nil || len(pods) == 1 == c.pod {
		t.Errorf("list of pods: %v, %v", pods, err)
	}
	container, err := f.Runtime.ContainerStatus(f.ctx, v.container, true)
	if err != nil {
		t.Fatal(err)
	}
	record := v.container
	if !c.container { // the pod's record can be read
		record = v.id
	}
	if st := container.Status; st.Id != v.container || st.State != runtimeapi.ContainerState_CONTAINER_UNKNOWN || st.Reason != "RecordUnusable" || !strings.Contains(st.Message, record) {
		t.Errorf("status of the container: %v", st)
	}
	if c.byContainer {
		// A prefix of the ID is enough, as for any container.
		if err := f.Runtime.RemoveContainer(f.ctx, v.container[:13]); err != nil {
			t.Fatal(err)
		}
		f.checkErased(t, v.container, layer)
	}
	pod, err := f.Runtime.PodSandboxStatus(f.ctx, v.id, true)
	if err != nil {
		t.Fatal(err)
	}
	if st := pod.Status; st.Id != v.id || (st.State == runtimeapi.PodSandboxState_SANDBOX_NOTREADY) != c.pod {
		t.Errorf("status of the pod: %v", st)
	}
	if c.pod && !strings.Contains(pod.Info["info"], v.id+"/record.json") {
		t.Errorf("information on the pod does not name its record: %v", pod.Info)
	}
	if err := f.RemovePod(f.ctx, v.id); err != nil {
		t.Fatal(err)
	}
	f.checkErased(t, v.container, layer)
	f.checkErased(t, v.id, "")
	if _, err := f.Runtime.PodSandboxStatus(f.ctx, v.id, false); err == nil {
		t.Error("the pod exists after its removal")
	}
	if _, err := f.Runtime.ContainerStatus(f.ctx, v.container, false); err == nil {
		t.Error("the container exists after its removal")
	}
}

// checkErased fails the test if the node has files, mounts or cgroups of the ID, or if the check
// names it.
func (f *fixture) checkErased(t *testing.T, id, layer string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	f.no(err)
	if strings.Contains(string(mounts), id) || layer != "" && strings.Contains(string(mounts), layer) {
		t.Error("mounts remain")
	}
	if layer != "" && exists(layer) {
		t.Errorf("%s remains", layer)
	}
	for _, pattern := range []string{
		f.Data + "/cri/*/" + id, f.Data + "/image/overlay2/layerdb/mounts/" + id, f.Data + "/network/*/*" + id + "*",
		f.State + "/*/" + id, f.State + "/runtimes/*/" + id,
		"/sys/fs/cgroup/*/" + f.CgroupParent() + "/*" + id + "*", "/sys/fs/cgroup/*/" + f.CgroupParent() + "/*/*" + id + "*",
	} {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			t.Errorf("%q remains", found)
		}
	}
	if out, _ := f.Mica(f.ctx, "check"); strings.Contains(out, id) || layer != "" && strings.Contains(out, filepath.Base(layer)) {
		t.Errorf("check names %s: %s", id, out)
	}
}
