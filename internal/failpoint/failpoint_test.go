package failpoint

import "testing"

func TestAct(t *testing.T) {
	points := parse("a=error, b=sleep:1ms,c=explode,d=sleep:x")
	for name, wantErr := range map[string]bool{"a": true, "b": false, "c": true, "d": true, "none": false} {
		if err := act(name, points[name]); (err != nil) != wantErr {
			t.Errorf("act(%q) = %v, want error: %v", name, err, wantErr)
		}
	}
}

func TestHitUnarmed(t *testing.T) {
	if err := Hit("anything"); err != nil {
		t.Errorf("Hit = %v", err)
	}
}
