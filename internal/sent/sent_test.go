package sent

import (
	"context"
	"testing"
	"testing/synctest"
)

func TestThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		watched, answer := Watch(ctx)
		var before, after, unwatched bool
		if answer.Awaited() {
			t.Error("an answer is awaited before Then")
		}
		Then(watched, func() { before = true })
		Then(ctx, func() { unwatched = true })
		if !answer.Awaited() {
			t.Error("an answer is not awaited after Then")
		}
		cancel()
		synctest.Wait()
		if before || !unwatched {
			t.Errorf("at the end of the context, the watched call counts as sent: %t, the other one: %t", before, unwatched)
		}
		for range 2 {
			answer.Sent()
		}
		Then(watched, func() { after = true })
		synctest.Wait()
		if !before || !after {
			t.Errorf("once the answer is sent, what was to be called before was: %t, after: %t", before, after)
		}
	})
}
