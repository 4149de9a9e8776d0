package signals

import (
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestStopSignal(t *testing.T) {
	for _, tc := range []struct {
		config runtimeapi.Signal
		image  string
		want   string
	}{
		{runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT, "", "SIGTERM"},
		{runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT, "SIGQUIT", "SIGQUIT"},
		{runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT, "quit", "SIGQUIT"},
		{runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT, "3", "SIGQUIT"},
		{runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT, "SIGRTMIN+3", "SIGRTMIN+3"},
		{runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT, "nonsense", "SIGTERM"},
		{runtimeapi.Signal_SIGNAL_SIGUSR1, "SIGQUIT", "SIGUSR1"},
		{runtimeapi.Signal_SIGNAL_SIGRTMAXMINUS2, "", "SIGRTMAX-2"},
	} {
		got := Stop(tc.config, tc.image)
		if got != tc.want {
			t.Errorf("Stop(%s, %q) = %s, want %s", tc.config, tc.image, got, tc.want)
		}
	}
	for value, name := range runtimeapi.Signal_name {
		sig := runtimeapi.Signal(value)
		if sig == runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
			continue
		}
		if got := CRI(kernelName(sig)); got != sig {
			t.Errorf("CRI(kernelName(%s)) = %s", name, got)
		}
		if n := Number(kernelName(sig)); n == 15 && sig != runtimeapi.Signal_SIGNAL_SIGTERM {
			t.Errorf("signal %s has no number", name)
		}
	}
}
