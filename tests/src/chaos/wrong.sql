-- Chunks whose rollup is not what their values come to, or that reach into the next.
with finite(series_id, attempt, rollback, first_step, first_n, step, n, value, is_finite) as
  (select c.series_id, c.attempt, c.rollback, c.first_step, c.first_n,
          coalesce(c.steps[v.place], c.first_step + (v.place - 1) * c.stride), coalesce(c.ns[v.place], 0), v.value,
          v.value <> all ('{NaN,Infinity,-Infinity}')
   from chunk c cross join lateral unnest(c.numbers) with ordinality v(value, place)),
counted as
  (select series_id, attempt, rollback, first_step, first_n, count(*) as count,
          count(*) filter (where not is_finite) as non_finite, min(value) filter (where is_finite) as min,
          max(value) filter (where is_finite) as max,
          (array_agg(step order by value, step) filter (where is_finite))[1] as min_step,
          (array_agg(step order by value desc, step) filter (where is_finite))[1] as max_step,
          (array_agg(value order by step, n))[1] as first, (array_agg(value order by step desc, n desc))[1] as last,
          (array_agg(step order by step desc, n desc))[1] as last_step,
          (array_agg(n order by step desc, n desc))[1] as last_n
   from finite group by 1, 2, 3, 4, 5),
ordered as
  (select *, lead((first_step, first_n)) over (partition by series_id, attempt, rollback
                                               order by first_step, first_n) as next from chunk)
select count(*) from ordered o left join counted c using (series_id, attempt, rollback, first_step, first_n)
where row(o.count, o.non_finite, o.min, o.max, o.min_step, o.max_step, o.first, o.last, o.last_step, o.last_n)
      is distinct from
      row(c.count, c.non_finite, c.min, c.max, c.min_step, c.max_step, c.first, c.last, c.last_step, c.last_n)
   or rollback = 0 and next <= row(o.last_step, o.last_n)
