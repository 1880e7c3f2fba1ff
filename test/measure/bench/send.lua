-- wrk's script: the tutorial's request, and the result as one line of JSON.
wrk.method = "POST"
done = function(summary)
  local e = summary.errors
  io.write(string.format('\n{"requests":%d,"microseconds":%d,"failed":%d}\n',
    summary.requests, summary.duration, e.connect + e.read + e.write + e.status + e.timeout))
end
