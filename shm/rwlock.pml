/* A model of the lock of shm/rwlock.py, rules R1 to R5, for the model checker spin.
 *
 *     spin -a -DLR=1 -DLW=1 shm/rwlock.pml && gcc -O2 -DSAFETY -DCOLLAPSE -o pan pan.c && ./pan -m100000
 *
 * tests/model/test_model.py runs it. Words are named as in shm/layout.py: `section` and `gate` are the slot's, `live` is
 * the loader's.
 *
 * WHO RUNS. Two slots with a worker each, which passes through the lock LR times and then idles or retires. One loader,
 * which publishes LW changes: it edits the inactive side, swaps, waits, edits the other side. Everything may be cut at
 * every step:
 *   - the loader is killed, with gates in its hands or in the middle of an edit; a new one follows, or none does;
 *   - worker 1 is killed, inside or outside; a joiner takes its slot over, or the slot stays empty;
 *   - or worker 1 leaks: it stays inside, alive, until the supervisor condemns it (R6), which in this model happens as late
 *     as can be: not before worker 0 has made all its passes. So worker 0 must get by without that help.
 *
 * WHAT IS CHECKED.
 *   P1 (assertion) no edit begins on a side that somebody reads, and nobody reads a side that is torn: being edited, or
 *      left in the middle of an edit by a dead loader.
 *   P2 (no invalid end state) everybody comes to an end. A worker never waits for anybody; the loader gets the lock and
 *      its grace period once those in its way have left, died, or been condemned.
 *
 * WHAT IS NOT. Time: "waits at most 10 ms" is a choice to go on that is open whenever the gate is taken, and a loader that
 * backs off wakes when it could get further. Weak memory: statements are sequentially consistent, which is what R2's fence
 * and the compiled loads and stores buy; mutant NOFENCE is what their absence would do. More than two slots.
 *
 * MUTANTS, each a rule left out or a mistake made (-D):
 *   NOGRACE     R5: no wait between the swap and the edit of the other side             breaks P1
 *   NOFENCE     R2: `live` is read before the section's store can be seen               breaks P1
 *   WRONGDEAD   a live worker is taken for dead (a pid looked up in another namespace)  breaks P1
 *   JOINODD     a joiner goes on from an odd section, so that inside looks like outside breaks P1
 *   EAGERJOIN   a new loader edits before its first grace period                        breaks P1
 *   NORENEW     R1: the gate is not replaced after going past it                        breaks P2: no writer ever again
 *   NOTIMEOUT   R1: a worker waits for its gate without limit                           breaks P2: a dead loader stops it
 *   STANDOFF    NOTIMEOUT, and R3: the loader waits with gates in its hands, and nobody is killed:
 *               the lock of 2015                                                        breaks P2: one leak stops all
 * And one that must NOT break anything:
 *   NOGATES     the loader swaps without taking a gate: safety rests on R5 alone
 */
#ifndef LR
#define LR 1
#endif
#ifndef LW
#define LW 1
#endif
#define N 2
#define NOWHERE 2

#ifdef STANDOFF
#define NOTIMEOUT
#endif

/* Shared memory and semaphores. */
bit  live;                  /* the side that readers take */
byte section[N];            /* odd = inside */
bit  gate[N] = 1;           /* 1 = free */

/* What the kernel knows. */
bit  unlocked[N];           /* the slot's lock file can be taken: its holder is dead, or has retired */
bit  mine[N];               /* the loader holds the semaphore that is the slot's gate today; a replaced one is nobody's */

/* What only the model knows. */
byte on[N] = NOWHERE;       /* side that the slot's worker reads */
bit  torn[2];               /* side in the middle of an edit */
bit  orphaned[N];           /* the gate was taken by a loader that died */
bit  rested;                /* worker 0 has made its passes */
bit  loader_over;           /* no loader will come any more */

/* Drawn at the start: what may happen in this run. A process that need not die must not be able to, or else its death
 * would always be a way out of a deadlock. */
bit  loader_mortal, worker_mortal, leaky;

/* Every step of a process that may be killed is an `if` with one of these beside it. */
#define OR_KILLED    :: d_step { worker_mortal && i == 1 -> worker_mortal = 0; on[i] = NOWHERE; unlocked[i] = 1 }; goto killed
#define OR_LOADER_KILLED \
  :: d_step { \
       loader_mortal -> loader_mortal = 0; \
       orphaned[0] = mine[0]; orphaned[1] = mine[1]; mine[0] = 0; mine[1] = 0; h = 0; changes = 0; seen = 0; busy = 0 \
     }; goto killed

/* One pass through the lock: R1 and R2. */
inline pass()
{
  if
  :: atomic { gate[i] == 1 -> gate[i] = 0; held = 1 }
#ifndef NOTIMEOUT
  :: atomic { gate[i] == 0 -> held = 0 }
#endif
  OR_KILLED
  fi;
#ifdef NOFENCE
  side = live;
  section[i] = section[i] + 1;
#else
  if :: section[i] = section[i] + 1 OR_KILLED fi;
  if :: side = live OR_KILLED fi;
#endif
  if :: d_step { on[i] = side; assert(!torn[side]) } OR_KILLED fi;
  if
  :: leaky && i == 1 ->                                 /* stays inside; R6 gets to it late */
     d_step { rested -> leaky = 0; on[i] = NOWHERE; unlocked[i] = 1 };
     goto killed
  :: else
  fi;
  if :: d_step { assert(!torn[side]); on[i] = NOWHERE; side = 0 } OR_KILLED fi;
  if :: section[i] = section[i] + 1 OR_KILLED fi;
  if
  :: d_step { held -> gate[i] = 1; held = 0 }
#ifdef NORENEW
  :: !held
#else
  :: d_step { !held -> gate[i] = 1; mine[i] = 0; orphaned[i] = 0 }
#endif
  OR_KILLED
  fi
}

proctype Worker(byte i)
{
  byte passes; bit held; bit side;
rounds:
  do
  :: passes < LR -> passes++; pass()
  :: passes == LR -> break
  od;
  if :: i == 0 -> rested = 1 :: else fi;
  if
  :: unlocked[i] = 1                                    /* retires */
  :: do                                                 /* or idles, */
     /* passing through every 100 ms: only an orphaned gate makes that worth modelling, and one pass has to mend it. */
     :: passes == LR && orphaned[i] -> passes++; pass()
     :: loader_over -> break
     od
  fi;
  goto over;
killed:
  passes = 0; held = 0; side = 0;
  if
  :: true -> goto over                                  /* nobody takes the slot over */
  :: unlocked[i] = 0                                    /* a joiner does */
  fi;
#ifndef JOINODD
  if :: section[i] % 2 == 1 -> section[i] = section[i] + 1 :: else fi;
#endif
  d_step { gate[i] = 1; mine[i] = 0; orphaned[i] = 0 };
  goto rounds;
over:
  skip
}

/* R5: everybody who was inside has left. */
inline grace()
{
  do
  :: h < N ->
     seen = section[h];
     if
     :: seen % 2 == 0 || section[h] != seen
     :: seen % 2 == 1 && unlocked[h]
#ifdef WRONGDEAD
     :: true
#endif
     OR_LOADER_KILLED
     fi;
     seen = 0;
     h++
  :: h == N -> break
  od;
  h = 0
}

inline edit_inactive()
{
  if
  :: d_step { side = 1 - live; assert(on[0] != side && on[1] != side); torn[side] = 1 }
  OR_LOADER_KILLED
  fi;
  if :: d_step { torn[side] = 0; side = 0 } OR_LOADER_KILLED fi
}

inline let_go()
{
  do
  :: h > 0 ->
     h--;
     if
     :: d_step { mine[h] -> mine[h] = 0; gate[h] = 1 }
     :: !mine[h]
     OR_LOADER_KILLED
     fi
  :: h == 0 -> break
  od
}

/* R3: all live gates, or none. */
inline take_gates()
{
  do
  :: h < N ->
     if
     :: d_step { gate[h] == 1 -> gate[h] = 0; mine[h] = 1; h++ }
     :: gate[h] == 0 && unlocked[h] -> h++
#ifndef STANDOFF
     :: gate[h] == 0 && !unlocked[h] ->
        busy = h;
        let_go();
        if :: gate[busy] == 1 || unlocked[busy] OR_LOADER_KILLED fi;
        busy = 0
#endif
     OR_LOADER_KILLED
     fi
  :: h == N -> break
  od
}

proctype Loader()
{
  byte changes; byte h; byte busy; byte seen; bit side; bit second;
start:
#ifdef EAGERJOIN
  if :: second :: else -> grace() fi;
#else
  grace();
#endif
  do
  :: changes < LW ->
     changes++;
     edit_inactive();
#ifndef NOGATES
     take_gates();
#endif
     if :: live = 1 - live OR_LOADER_KILLED fi;         /* R4 */
     let_go();
#ifndef NOGRACE
     grace();
#endif
     edit_inactive()
  :: changes == LW -> goto over
  od;
killed:
  if
  :: true -> goto over
  :: second = 1; goto start
  fi;
over:
  loader_over = 1
}

init
{
  atomic {
#ifdef STANDOFF
    leaky = 1;
#else
    if :: loader_mortal = 1 :: true fi;
    if :: worker_mortal = 1 :: leaky = 1 :: true fi;
#endif
    run Worker(0); run Worker(1); run Loader()
  }
}
