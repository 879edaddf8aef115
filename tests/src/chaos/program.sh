# The program of a run: reports a number a step, keeps a state to go on from, leaves a file. Everything it reports is a
# function of its seed, so that whoever reads the database knows what must be there.
# A line or a file that cannot be written ends it: to go on would be to say what is not so.
set -e
step=0
if [ -n "$CAUSEWAY_RESUME" ]; then step=$(cat "$CAUSEWAY_RESUME"); fi
while [ "$step" -lt "$STEPS" ]; do
    sleep "$PACE"
    step=$((step + 1))
    number=$(((CAUSEWAY_SEED * 7919 + step * 104729) % 1000003))
    printf '{"metrics": {"step": %d, "values": {"x": %d.5}}}\n' "$step" "$number" >> "$CAUSEWAY_JOURNAL"
    if [ $((step % 4)) = 0 ]; then
        # A name of its own: the file is copied when the line is read.
        echo "$step" > "state-$step"
        printf '{"resume": {"path": "state-%d", "step": %d}}\n' "$step" "$step" >> "$CAUSEWAY_JOURNAL"
    fi
    echo "step $step"
done
echo "model of seed $CAUSEWAY_SEED after $STEPS steps" > model
printf '{"checkpoint": {"path": "model", "step": %d}}\n' "$STEPS" >> "$CAUSEWAY_JOURNAL"
