//! The workers' side of the model: what an agent sends, what it makes of an answer, and what its process does.

use super::{
    cluster::{End, Held, LINES, Request, State, Steps},
    server::Answer,
};

/// A request goes on the line, if there is room.
fn send<const R: usize>(steps: &mut Steps<'_, R>, what: &'static str, request: Request) {
    let line = &steps.from.line;
    if line.len() < steps.room && !line.contains(&request) {
        steps.about(what, request, |next| {
            next.line.push(request);
            next.line.sort_unstable();
        });
    }
}

/// Every step of a worker that is no misfortune.
pub fn works<const R: usize>(steps: &mut Steps<'_, R>, at: usize) {
    let (me, worker) = (&steps.from.workers[at], at as u8);
    if !me.agent {
        // What it knew of the server is gone; it has its folder.
        steps.add("agent starts, worker", at, |next| {
            next.workers[at].agent = true;
            change(next, at, |held| held.shipped = 0);
        });
    }
    let Some(held) = me.held else {
        if me.agent {
            send(steps, "asks for work:", Request::Lease { worker });
        }
        return;
    };
    if held.ended.is_none() && held.written < LINES {
        steps.add("line written, worker", at, |next| change(next, at, |held| held.written += 1));
    }
    if held.ended.is_none() && held.written == LINES {
        steps.add("process done, worker", at, |next| {
            change(next, at, |held| held.ended = Some(End::Succeeded))
        });
    }
    if !me.agent {
        return;
    }
    let fence = held.fence();
    send(steps, "heartbeat:", Request::Heartbeat { worker, fence });
    if held.shipped < held.written {
        let (first, last) = (held.shipped + 1, held.written);
        send(steps, "ships:", Request::Ship { worker, fence, first, last });
    } else if let Some(end) = held.ended {
        send(steps, "tells the end:", Request::Finish { worker, fence, end });
    }
}

fn change<const R: usize>(state: &mut State<R>, at: usize, change: impl FnOnce(&mut Held)) {
    if let Some(held) = &mut state.workers[at].held {
        change(held);
    }
}

/// The misfortunes of a worker.
pub fn suffers<const R: usize>(steps: &mut Steps<'_, R>, at: usize) {
    let me = &steps.from.workers[at];
    if me.agent {
        steps.misfortune("agent killed, worker", at, |next| next.workers[at].agent = false);
    }
    let Some(held) = me.held else { return };
    // With its host, so that nothing that was sent before is still on its way.
    steps.misfortune("folder lost, worker", at, |next| {
        next.workers[at].held = None;
        next.line.retain(|request| usize::from(request.worker()) != at);
    });
    if held.ended.is_some() {
        return;
    }
    for (what, end) in [
        ("process crashed, worker", End::Crashed),
        ("process failed for good, worker", End::Failed),
        ("process cancelled unasked, worker", End::Cancelled),
        ("shut down: worker", End::Interrupted),
    ] {
        steps.misfortune(what, at, |next| change(next, at, |held| held.ended = Some(end)));
    }
}

/// What an agent makes of an answer. One that comes late is one that it acts on late, and anything may happen between.
pub fn hear<const R: usize>(state: &mut State<R>, request: Request, answer: Answer) {
    let fence = match request {
        Request::Lease { .. } => None,
        Request::Heartbeat { fence, .. } | Request::Ship { fence, .. } | Request::Finish { fence, .. } => {
            Some(fence)
        }
    };
    let me = &mut state.workers[usize::from(request.worker())];
    // Nobody waits any more for the answer to what an earlier agent or an earlier attempt has asked.
    if !me.agent || me.held.map(|held| held.fence()) != fence {
        return;
    }
    match (answer, me.held.as_mut()) {
        (Answer::Grant(held), _) => {
            state.runs[held.run as usize].journals = held.journal;
            me.held = Some(held);
        }
        (Answer::Continue { shipped }, Some(held)) => {
            held.shipped = held.shipped.max(shipped.min(held.written))
        }
        (Answer::Stop, Some(held)) => held.ended = held.ended.or(Some(End::Cancelled)),
        (Answer::Yield, Some(held)) => held.ended = held.ended.or(Some(End::Yielded)),
        (Answer::Finished | Answer::Stale, _) => me.held = None,
        (Answer::Nothing, _) | (_, None) => {}
    }
}
