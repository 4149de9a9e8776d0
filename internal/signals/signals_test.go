package signals

import "testing"

func TestRestoreInherited(t *testing.T) {
	if err := sigaction(cancel, &action{handler: ignored}, nil); err != nil {
		t.Fatal(err)
	}
	if err := RestoreInherited(); err != nil {
		t.Fatal(err)
	}
	for _, signal := range []uintptr{cancel, setxid} {
		var now action
		if err := sigaction(signal, nil, &now); err != nil || now.handler == ignored {
			t.Errorf("signal %d has handler %d, %v", signal, now.handler, err)
		}
	}
}
