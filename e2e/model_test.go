package e2e

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/testseed"
)

// modelSteps is the number of random operations in the model test.
const modelSteps = 250

// model is the expected state of the node: pods with their readiness, containers with their state.
type model struct {
	*fixture
	random     *rand.Rand
	configs    map[string]pod
	ready      map[string]bool
	states     map[string]runtimeapi.ContainerState
	containers map[string]string // container to pod
}

// TestLifeCycleModel runs random operations, including kill -9 of the daemon, and compares the
// node's lists with a model after each one. Property: in every order of operations, the lists show
// the effect of each successful call, a rejected call has no effect, and the daemon's death changes
// nothing.
func TestLifeCycleModel(t *testing.T) {
	f := start(t)
	m := &model{
		fixture: f, random: testseed.New(t), configs: map[string]pod{}, ready: map[string]bool{},
		states: map[string]runtimeapi.ContainerState{}, containers: map[string]string{},
	}
	f.pull(busyboxImage)
	operations := []func() string{
		m.runPodStep, m.createStep, m.createStep, m.createStep, m.startStep, m.startStep, m.startStep, m.endStep,
		m.stopStep, m.removeStep, m.stopPodStep, m.removePodStep, m.killDaemonStep,
	}
	for i := range modelSteps {
		what := operations[m.random.IntN(len(operations))]()
		if what != "" {
			m.compare(fmt.Sprintf("step %d: %s", i, what))
		}
	}
}

// pick returns a random key, or "" if there is none. It sorts the keys first, so that the same seed
// makes the same choices as far as IDs allow.
func pick[V any](r *rand.Rand, of map[string]V) string {
	if len(of) == 0 {
		return ""
	}
	return slices.Sorted(maps.Keys(of))[r.IntN(len(of))]
}

func (m *model) runPodStep() string {
	if len(m.ready) >= 4 {
		return ""
	}
	p := m.runPod(m.podConfig())
	m.configs[p.id], m.ready[p.id] = p, true
	return "run pod " + p.id
}

func (m *model) createStep() string {
	p := pick(m.random, m.ready)
	if p == "" {
		return ""
	}
	config := m.containerConfig(busyboxImage, "sh", "-c", "trap 'exit 7' USR1; while :; do sleep 1 & wait; done")
	config.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	id, err := m.Runtime.CreateContainer(m.ctx, p, config, m.configs[p].config)
	m.expect("create container in pod "+p, err, m.ready[p])
	if err == nil {
		m.states[id], m.containers[id] = runtimeapi.ContainerState_CONTAINER_CREATED, p
	}
	return "create container in pod " + p
}

func (m *model) startStep() string {
	c := pick(m.random, m.states)
	if c == "" {
		return ""
	}
	possible := m.states[c] == runtimeapi.ContainerState_CONTAINER_CREATED && m.ready[m.containers[c]]
	m.expect("start container "+c, m.Runtime.StartContainer(m.ctx, c), possible)
	if possible {
		m.states[c] = runtimeapi.ContainerState_CONTAINER_RUNNING
	}
	return "start container " + c
}

// endStep makes a container exit by itself.
func (m *model) endStep() string {
	c := pick(m.random, m.states)
	if c == "" || m.states[c] != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return ""
	}
	// The signal is repeated, because the shell may not have set its trap yet.
	m.eventually("container ends by itself", func() bool {
		_, _, _ = m.Runtime.ExecSync(m.ctx, c, []string{"kill", "-USR1", "1"}, 0)
		return m.status(c).State == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	m.states[c] = runtimeapi.ContainerState_CONTAINER_EXITED
	return "end container " + c
}

func (m *model) stopStep() string {
	c := pick(m.random, m.states)
	if c == "" {
		return ""
	}
	m.expect("stop container "+c, m.Runtime.StopContainer(m.ctx, c, 0), true)
	if m.states[c] == runtimeapi.ContainerState_CONTAINER_RUNNING {
		m.states[c] = runtimeapi.ContainerState_CONTAINER_EXITED
	}
	return "stop container " + c
}

func (m *model) removeStep() string {
	c := pick(m.random, m.states)
	if c == "" {
		return ""
	}
	m.expect("remove container "+c, m.Runtime.RemoveContainer(m.ctx, c), true)
	m.forget(c)
	return "remove container " + c
}

func (m *model) stopPodStep() string {
	p := pick(m.random, m.ready)
	if p == "" {
		return ""
	}
	m.expect("stop pod "+p, m.Runtime.StopPodSandbox(m.ctx, p), true)
	m.ready[p] = false
	for c, of := range m.containers {
		if of == p {
			m.states[c] = runtimeapi.ContainerState_CONTAINER_EXITED
		}
	}
	return "stop pod " + p
}

func (m *model) removePodStep() string {
	p := pick(m.random, m.ready)
	if p == "" {
		return ""
	}
	m.expect("remove pod "+p, m.Runtime.RemovePodSandbox(m.ctx, p), true)
	delete(m.ready, p)
	for c, of := range maps.Clone(m.containers) {
		if of == p {
			m.forget(c)
		}
	}
	return "remove pod " + p
}

func (m *model) killDaemonStep() string {
	m.no(m.Kill())
	_, err := m.StartDaemon(m.ctx)
	m.no(err)
	return "kill the daemon"
}

func (m *model) forget(c string) {
	delete(m.states, c)
	delete(m.containers, c)
}

func (m *model) expect(what string, err error, success bool) {
	m.t.Helper()
	if (err == nil) != success {
		m.t.Fatalf("%s: %v, want success: %v", what, err, success)
	}
}

// compare ends the test if the node's lists differ from the model.
func (m *model) compare(what string) {
	m.t.Helper()
	pods, err := m.Runtime.ListPodSandbox(m.ctx, nil)
	m.no(err)
	ready := map[string]bool{}
	for _, p := range pods {
		ready[p.Id] = p.State == runtimeapi.PodSandboxState_SANDBOX_READY
	}
	if !maps.Equal(ready, m.ready) {
		m.t.Fatalf("%s: pods are %v, want %v", what, ready, m.ready)
	}
	containers, err := m.Runtime.ListContainers(m.ctx, nil)
	m.no(err)
	states := map[string]runtimeapi.ContainerState{}
	for _, c := range containers {
		states[c.Id] = c.State
	}
	if !maps.Equal(states, m.states) {
		m.t.Fatalf("%s: containers are %v, want %v", what, states, m.states)
	}
}
